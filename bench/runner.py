"""The evaluation runner against a server, in a process of its own, that answers at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from toolwise.agent.openai_engine import ServedModel
from toolwise.data import AnswerType, Task, encode_image
from toolwise.data.parquet import write_tasks
from toolwise.evaluation.runner import EvaluationSettings, evaluate

ITEMS = 3000
SETTINGS = EvaluationSettings(samples=0, counterfactual_samples=0)


def measure() -> dict[str, float]:
    """Items per second, one answer and one picture each, from reading to published results."""
    picture = encode_image(Image.effect_noise((160, 160), 64).convert("RGB"))
    tasks = [
        Task(
            id=str(number),
            source="bench",
            ability="perception",
            question=f"Which of the two is in picture {number}?",
            answer=("B",),
            images=(picture,),
            answer_type=AnswerType.CHOICE,
            choices=("a cat", "a dog"),
        )
        for number in range(ITEMS)
    ]
    with tempfile.TemporaryDirectory() as folder, answering_server() as port:
        items = Path(folder) / "items.parquet"
        write_tasks(items, tasks)
        model = ServedModel(base_url=f"http://127.0.0.1:{port}/v1", model="instant")
        started, used = time.perf_counter(), time.process_time()
        evaluate(model, items, None, Path(folder) / "evaluation", SETTINGS)
        seconds, processor = time.perf_counter() - started, time.process_time() - used
    return {
        "items_per_second": ITEMS / seconds,
        "runner_cpu_ms_per_item": 1e3 * processor / ITEMS,
        "picture_kib": len(picture) / 1024,
    }


@contextmanager
def answering_server() -> Iterator[int]:
    command = [sys.executable, "-m", "bench.answering_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
