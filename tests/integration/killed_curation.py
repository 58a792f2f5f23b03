"""Curates prompts in a process of its own, which may kill itself: `… FOLDER OUT LOG KILL_AT`.

The process dies by SIGKILL when it has put its KILL_AT-th write on disk, and leaves half a line
behind it. What it computed goes to LOG, a line each.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripted_engine import ScriptedEngine, question_of

from toolwise.curation import deduplication, rl_filters
from toolwise.curation.deduplication import DeduplicationSettings
from toolwise.curation.rl import RlCurationSettings, curate_rl
from toolwise.data import Message

SETTINGS = RlCurationSettings(
    generations=2, batch_size=8, rollouts=48, deduplicate=DeduplicationSettings()
)


def model(conversation: list[Message], tools: bool, index: int) -> str:
    """Right in one of two rollouts, but for questions that say otherwise."""
    right = index % 2 == 0 or "always" in question_of(conversation)
    return f"<answer>{42 if right else 41}</answer>"


def main(folder: Path, out: Path, log: Path, kill_at: int) -> None:
    lines = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    writes = 0
    fsync = os.fsync

    def fsync_and_die(file: int) -> None:
        nonlocal writes
        fsync(file)
        writes += 1
        if writes == kill_at:
            os.write(file, b'{"seconds": 0.0, "verd')
            os.kill(os.getpid(), signal.SIGKILL)

    def logged(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            os.write(lines, f"{name} {arguments[-1].id}\n".encode())
            return function(*arguments)

        return call

    def answer(conversation: list[Message], tools: bool, index: int) -> str:
        os.write(lines, f"rollout {question_of(conversation)} {index}\n".encode())
        return model(conversation, tools, index)

    os.fsync = fsync_and_die
    rl_filters.check_images = logged(rl_filters.check_images, "image")
    deduplication._item_of = logged(deduplication._item_of, "item")
    deduplication.BenchmarkIndex.verdict = logged(deduplication.BenchmarkIndex.verdict, "verdict")
    curate_rl(
        None,
        folder / "tasks.parquet",
        None,
        out,
        SETTINGS,
        0,
        benchmark=folder / "benchmark.parquet",
        engine=ScriptedEngine(answer),
        tools=[],
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
