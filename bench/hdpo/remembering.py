"""Tools that remember what came of a call, and do not make the same one again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from toolwise.errors import BackendError
from toolwise.tools import Tool, ToolResult, ToolSession, open_tools

History = tuple[str, ...]
"""Digest of a session's images, and the arguments of each call so far."""


def open_remembering(corpus: Path) -> list[Tool]:
    """The tools of `open_tools`, each as `Remembering`."""
    return [Remembering(tool) for tool in open_tools(corpus)]


class Remembering:
    """A tool over `tool`, for models whose calls give the same whenever they are made.

    The study's arms write the same few programs about the same signs thousands of times. A session
    of `tool` is opened only where a call is new; it is given the earlier calls first. Errors are
    not remembered: time may have caused them.
    """

    def __init__(self, tool: Tool) -> None:
        self.name = tool.name
        self.schema = tool.schema
        self._tool = tool
        self._results: dict[History, ToolResult] = {}

    async def open(self, images: Sequence[bytes]) -> ToolSession:
        return _Session(self._tool, images, self._results)

    async def aclose(self) -> None:
        await self._tool.aclose()


class _Session:
    def __init__(
        self, tool: Tool, images: Sequence[bytes], results: dict[History, ToolResult]
    ) -> None:
        self._tool = tool
        self._images = images
        self._results = results
        digests = b"".join(sha256(image).digest() for image in images)
        self._history: History = (sha256(digests).hexdigest(),)
        self._not_made: list[dict[str, Any]] = []
        self._session: ToolSession | None = None

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        before = self._history
        self._history = (*before, json.dumps(arguments, sort_keys=True))
        if self._session is None:
            if known := self._results.get(self._history):
                self._not_made.append(arguments)
                return replace(known, seconds=0.0)
            self._session = await self._caught_up(before)
        result = await self._session.call(arguments)
        if not result.is_error:
            self._results[self._history] = result
        return result

    async def _caught_up(self, history: History) -> ToolSession:
        """A session in which the calls that were remembered have been made after all."""
        session = await self._tool.open(self._images)
        for made, arguments in enumerate(self._not_made, 1):
            known = self._results[history[: made + 1]]
            again = await session.call(arguments)
            if (again.text, again.images) != (known.text, known.images):
                await session.close()
                raise BackendError(
                    f"{self._tool.name}: {arguments} gave {known.text!r} and now {again.text!r}; "
                    "the study remembers calls, so they have to give the same each time"
                )
        return session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
