"""Tools run, and sessions end, while other conversations are still writing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from toolwise.agent import Sampling, TokenRecord, Turn, run_agent
from toolwise.agent.engine import OnTurn
from toolwise.data import Message, Task
from toolwise.tools import ToolResult

SCHEMA: dict[str, Any] = {"type": "function", "function": {"name": "bell", "parameters": {}}}
CALL = '<tool_call>{"name": "bell", "arguments": {}}</tool_call>'


class Bell:
    """A tool, and its only session."""

    name, schema = "bell", SCHEMA

    def __init__(self) -> None:
        self.rung, self.closed = asyncio.Event(), asyncio.Event()

    async def open(self, images: Sequence[bytes]) -> Bell:
        return self

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        self.rung.set()
        return ToolResult("ding")

    async def close(self) -> None:
        self.closed.set()

    async def aclose(self) -> None: ...


class Engine:
    """The first conversation calls, and the second does not end before the bell has rung."""

    name, max_result_chars = "two", 100

    def __init__(self, bell: Bell) -> None:
        self.bell = bell
        self.on_turn: OnTurn | None = None
        self.heard: list[Sequence[Message]] = []

    def start(self, conversations: Any, tools: Any) -> Engine:
        return self

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        assert self.on_turn is not None
        turns = []
        for index in indices:
            if index == 1:
                await asyncio.wait_for(self.bell.rung.wait(), 10)
            calls = index == 0 and not self.heard
            turns.append(Turn(CALL if calls else "<answer>1</answer>", "stop", 1, 1))
            self.on_turn(index, turns[-1])
        return turns

    def append(self, index: int, messages: Sequence[Message]) -> None:
        self.heard.append(messages)

    def tokens(self, index: int) -> TokenRecord:
        raise NotImplementedError


class Patient(Engine):
    """Both conversations call, and the second does not end before the first has given back."""

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        assert self.on_turn is not None
        turns = []
        for index in indices:
            if index == 1 and self.heard:
                await asyncio.wait_for(self.bell.closed.wait(), 10)
            turns.append(Turn("<answer>1</answer>" if self.heard else CALL, "stop", 1, 1))
            self.on_turn(index, turns[-1])
        return turns


def answered(engine: type[Engine]) -> list[int]:
    """How often each of two conversations called."""

    async def answer() -> list[int]:
        bell = Bell()
        tasks = [
            Task(id=str(n), source="t", ability="math", question="?", answer=("1",)) for n in (0, 1)
        ]
        rollouts = await run_agent(engine(bell), tasks, [bell])
        assert [rollout.answer for rollout in rollouts] == ["1", "1"]
        return [rollout.tool_calls for rollout in rollouts]

    return asyncio.run(answer())


def test_a_call_runs_while_another_conversation_writes() -> None:
    assert answered(Engine) == [1, 0]


def test_a_conversations_sessions_end_while_another_writes() -> None:
    assert answered(Patient) == [1, 1]
