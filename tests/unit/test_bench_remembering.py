"""Tools of the study that make the same calls once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench.hdpo.remembering import Remembering
from toolwise.errors import BackendError
from toolwise.tools import ToolError, ToolResult


class Adding:
    """A tool with a state: each call adds to the sum of its session. It counts what it does."""

    name, schema = "add", {"type": "function"}

    def __init__(self) -> None:
        self.opened, self.made, self.drift = 0, 0, 0

    async def open(self, images: Sequence[bytes]) -> Sum:
        self.opened += 1
        return Sum(self, len(images))

    async def aclose(self) -> None:
        self.opened = -1


class Sum:
    def __init__(self, tool: Adding, start: int) -> None:
        self.tool, self.sum, self.closed = tool, start, 0

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        self.tool.made += 1
        if arguments["n"] < 0:
            raise ToolError("too small")
        self.sum += arguments["n"] + self.tool.drift
        return ToolResult(str(self.sum), is_error=arguments["n"] == 0)

    async def close(self) -> None:
        self.closed += 1


async def calls(tool: Remembering, images: Sequence[bytes], *numbers: int) -> list[str]:
    session = await tool.open(images)
    answers = [(await session.call({"n": n})).text for n in numbers]
    await session.close()
    return answers


async def test_the_same_calls_on_the_same_images_are_made_once():
    inner = Adding()
    tool = Remembering(inner)
    assert (tool.name, tool.schema) == (inner.name, inner.schema)
    assert await calls(tool, [b"a"], 2, 3) == ["3", "6"]
    assert await calls(tool, [b"a"], 2, 3) == ["3", "6"]
    assert (inner.opened, inner.made) == (1, 2)
    # Other images, and the same bytes cut otherwise, are other calls.
    assert await calls(tool, [b"b", b"a"], 2) == ["4"]
    assert await calls(tool, [b"ba"], 2) == ["3"]
    assert (inner.opened, inner.made) == (3, 4)


async def test_a_new_call_after_remembered_ones_finds_the_state_they_left():
    inner = Adding()
    tool = Remembering(inner)
    await calls(tool, [], 2, 3)
    assert await calls(tool, [], 2, 5, 3) == ["2", "7", "10"]
    assert (inner.opened, inner.made) == (2, 2 + 3)


async def test_a_call_that_gives_something_else_when_made_again_ends_the_study():
    inner = Adding()
    tool = Remembering(inner)
    await calls(tool, [], 2)
    inner.drift = 1
    assert await calls(tool, [], 2) == ["2"]
    with pytest.raises(BackendError, match=r"add: {'n': 2} gave '2' and now '3'"):
        await calls(tool, [], 2, 5)


async def test_errors_are_met_each_time():
    inner = Adding()
    tool = Remembering(inner)
    for _ in range(2):
        assert await calls(tool, [], 0) == ["0"]
        with pytest.raises(ToolError, match="too small"):
            await calls(tool, [], -1)
    assert inner.made == 4
    await tool.aclose()
    assert inner.opened == -1
