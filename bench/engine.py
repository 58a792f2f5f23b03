"""The in-process engine beside `model.generate`, same model, prompts and greedy tokens."""

from __future__ import annotations

import asyncio
import statistics
import time

import torch

from toolwise.agent import Sampling, user_message
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.synthetic.environment import PHRASES, SignboardSettings, make_environment
from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA

TOKENS = 24
PROMPTS = 12
GROUP = 8
REPEATS = 5


def measure() -> dict[str, float]:
    """Median seconds for a group-sampled batch (12 prompts × 8), ours and `model.generate`'s."""
    processor = build_processor([PYTHON_SCHEMA], PHRASES)
    engine = TransformersEngine(build_model(processor.tokenizer).eval(), processor)
    settings = SignboardSettings(
        trajectories=1, rl_tasks=3 * PROMPTS, benchmark_items=1, corpus_distractors=1
    )
    tasks = make_environment(0, settings).rl_tasks
    signs = [task for task in tasks if task.ability == "perception"][:PROMPTS]
    conversations = [[user_message(task)] for task in signs for _ in range(GROUP)]
    ours, theirs = [], []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        batch = engine.start(conversations, [PYTHON_SCHEMA])
        asyncio.run(batch.generate(range(len(conversations)), Sampling(max_tokens=TOKENS)))
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        _library(engine, conversations)
        theirs.append(time.perf_counter() - started)
    ours, theirs = ours[1:], theirs[1:]  # the first of each warms up
    return {
        "prompts": PROMPTS,
        "answers": PROMPTS * GROUP,
        "engine_seconds": statistics.median(ours),
        "model_generate_seconds": statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
    }


def _library(engine: TransformersEngine, conversations: list) -> None:
    prompts = [engine.renderer.prompt(c, [PYTHON_SCHEMA]) for c in conversations]
    ids = torch.tensor([prompt.ids for prompt in prompts])
    pixels = [engine.renderer.pixels(image) for prompt in prompts for image in prompt.images]
    engine.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == engine.renderer.image_id).int(),
        pixel_values=torch.cat([p.values for p in pixels]),
        image_grid_thw=torch.tensor([p.grid for p in pixels]),
        max_new_tokens=TOKENS,
        do_sample=False,
        suppress_tokens=engine.suppressed_ids,
    )
