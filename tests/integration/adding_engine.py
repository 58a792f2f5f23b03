"""Engines that add, for evaluations: they run in worker processes, so they are opened by name."""

import json
import os
import random
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolwise.agent import Sampling, TokenRecord, Turn
from toolwise.data import Message
from toolwise.errors import BackendError


@dataclass(frozen=True)
class AddingEngine:
    """Adds numbers below ten in its head, and larger ones with `python`.

    Without tools it guesses at larger sums; a sum that is 10 it gets right four times in five.
    What it is asked for is noted in `log`, a line per batch.
    """

    log: Path
    name: str = "adding"
    max_result_chars: int = 4096

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> "AddingBatch":
        return AddingBatch(self, [list(c) for c in conversations], bool(tools))

    def note(self, conversations: int, tools: bool, sampling: Sampling) -> None:
        threads = os.environ["OMP_NUM_THREADS"]
        asked = [conversations, tools, sampling.temperature, sampling.seed, threads]
        with self.log.open("a") as file:
            file.write(json.dumps(asked) + "\n")


@dataclass
class AddingBatch:
    engine: AddingEngine
    conversations: list[list[Message]]
    tools: bool
    noted: bool = False

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        if not self.noted:
            self.engine.note(len(self.conversations), self.tools, sampling)
            self.noted = True
        return [self._turn(index, random.Random(f"{sampling.seed} {index}")) for index in indices]

    def _turn(self, index: int, draw: random.Random) -> Turn:
        messages = self.conversations[index]
        last = messages[-1]["content"][-1]["text"]
        found = re.fullmatch(r"(\d+)\+(\d+)\?", last)
        if found is None:
            text = f"<answer>{last}</answer>"
        else:
            a, b = map(int, found.groups())
            known = a + b < 10 or (a + b == 10 and draw.random() < 0.8)
            call = {"name": "python", "arguments": {"code": f"print({a}+{b})"}}
            if known:
                text = f"<answer>{a + b}</answer>"
            elif self.tools:
                text = f"<tool_call>{json.dumps(call)}</tool_call>"
            else:
                text = f"<answer>{draw.randrange(10)}</answer>"
        return Turn(text, "stop", 7, len(text), seconds=0.5)

    def append(self, index: int, messages: Sequence[Message]) -> None:
        self.conversations[index] += messages

    def tokens(self, index: int) -> TokenRecord:
        raise NotImplementedError


class UnreachableEngine(AddingEngine):
    def start(self, conversations: Any, tools: Any) -> AddingBatch:
        raise BackendError("the model server at http://model:8000 failed 5 times")


class DyingEngine(AddingEngine):
    def start(self, conversations: Any, tools: Any) -> AddingBatch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class BuggyEngine(AddingEngine):
    def start(self, conversations: Any, tools: Any) -> AddingBatch:
        raise KeyError("pixel_values")
