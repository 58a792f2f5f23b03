"""An engine that computes in process keeps out of the event loop's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from toolwise.agent import Sampling, TokenRecord, Turn
from toolwise.data import Message
from toolwise.serving.model import ThreadedEngine


class ComputingEngine:
    """Blocks its thread until told, and notes what it was asked, in which thread."""

    name = "computing"
    max_result_chars = 4096

    def __init__(self) -> None:
        self.computing = threading.Event()
        self.go_on = threading.Event()
        self.steps: list[str] = []
        self.threads: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0

    def note(self, step: str) -> None:
        self.steps.append(step)
        self.threads.add(threading.current_thread().name)

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> ComputingBatch:
        self.note(f"start {len(conversations)}")
        return ComputingBatch(self)


class ComputingBatch:
    def __init__(self, engine: ComputingEngine) -> None:
        self.engine = engine

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        self.engine.note(f"generate {list(indices)}")
        self.engine.at_once += 1
        self.engine.most_at_once = max(self.engine.most_at_once, self.engine.at_once)
        self.engine.computing.set()
        self.engine.go_on.wait()
        self.engine.at_once -= 1
        return [Turn("x", "stop", 1, 1) for _ in indices]

    def append(self, index: int, messages: Sequence[Message]) -> None:
        self.engine.note(f"append {index}")

    def tokens(self, index: int) -> TokenRecord:
        raise NotImplementedError


async def test_the_loop_is_free_while_the_model_computes() -> None:
    engine = ComputingEngine()
    batch = ThreadedEngine(engine).start([[]], [])
    turn = asyncio.create_task(batch.generate([0], Sampling()))
    await asyncio.to_thread(engine.computing.wait)
    assert not turn.done()
    engine.go_on.set()
    assert len(await turn) == 1


async def test_batches_compute_one_after_another_in_one_thread() -> None:
    engine = ComputingEngine()
    engine.go_on.set()
    threaded = ThreadedEngine(engine)
    batches = [threaded.start([[]], []) for _ in range(4)]
    await asyncio.gather(*(batch.generate([0], Sampling()) for batch in batches))
    assert engine.most_at_once == 1
    assert len(engine.threads) == 1
    assert threading.current_thread().name not in engine.threads


async def test_tool_results_reach_the_model_once_and_before_its_next_turn() -> None:
    engine = ComputingEngine()
    engine.go_on.set()
    batch = ThreadedEngine(engine).start([[], []], [])
    await batch.generate([0, 1], Sampling())
    batch.append(1, [])
    await batch.generate([1], Sampling())
    await batch.generate([1], Sampling())
    assert engine.steps == [
        "start 2",
        "generate [0, 1]",
        "append 1",
        "generate [1]",
        "generate [1]",
    ]
