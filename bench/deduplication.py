"""Keeping benchmarks out of training: prompts compared per second, without pictures and with.

The benchmark has as many items as there are prompts; a tenth of the prompts are in it, slightly
changed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from toolwise.curation import filtering
from toolwise.curation.deduplication import BenchmarkIndex, DeduplicationSettings, Item
from toolwise.curation.filtering import by_rule
from toolwise.data import Task, encode_image

TEXTS = 20_000
PICTURES = 300
SIDE = 512


def measure() -> dict[str, float]:
    """Prompts per second on one core and on all, and the share of planted ones that is found."""
    texts, text_benchmark = _texts()
    pictures, picture_benchmark = _pictures()
    text_index = BenchmarkIndex(list(map(Item.of, text_benchmark)), DeduplicationSettings())
    picture_index = BenchmarkIndex(list(map(Item.of, picture_benchmark)), DeduplicationSettings())
    cores = filtering.CORES
    figures: dict[str, float] = {"texts": len(texts), "pictures": len(pictures)}
    try:
        for name, count in (("one_core", 1), ("all_cores", cores)):
            filtering.CORES = count
            for kind, prompts, index in (
                ("texts", texts, text_index),
                ("pictures", pictures, picture_index),
            ):
                started = time.perf_counter()
                dropped = _dropped(prompts, index)
                seconds = time.perf_counter() - started
                figures[f"{kind}_per_second_{name}"] = len(prompts) / seconds
                figures[f"{kind}_planted_found"] = dropped / (len(prompts) // 10)
    finally:
        filtering.CORES = cores
    return figures


def _dropped(prompts: Sequence[Task], index: BenchmarkIndex) -> int:
    verdicts = asyncio.run(by_rule(index.verdict)(dict(enumerate(prompts))))
    return sum(not verdict.keep for verdict in verdicts.values())


def _texts() -> tuple[list[Task], list[Task]]:
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghij", k=6)) for _ in range(5000)]
    benchmark = [" ".join(draw.choices(vocabulary, k=30)) for _ in range(TEXTS)]
    prompts = [" ".join(draw.choices(vocabulary, k=30)) for _ in range(TEXTS)]
    for number in range(0, TEXTS, 10):
        words = benchmark[number].split()
        words[draw.randrange(30)] = draw.choice(vocabulary)
        prompts[number] = " ".join(words)
    return list(map(_task, prompts)), list(map(_task, benchmark))


def _pictures() -> tuple[list[Task], list[Task]]:
    def photograph(seed: int) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    question = "What is in the middle of the picture?"
    benchmark = [_task(question, photograph(seed)) for seed in range(PICTURES)]
    prompts = [_task(question, photograph(PICTURES + seed)) for seed in range(PICTURES)]
    for number in range(0, PICTURES, 10):
        prompts[number] = _task(question, photograph(number).resize((SIDE // 2, SIDE // 2)))
    return prompts, benchmark


def _task(question: str, *pictures: Image.Image) -> Task:
    return Task("", "bench", "math", question, ("",), tuple(map(encode_image, pictures)))
