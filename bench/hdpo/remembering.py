"""Tools that make the same calls on the same images once, and remember what came of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from toolwise.tools import Tool, ToolResult, ToolSession, open_tools

Calls = tuple[str, ...]
"""Digest of the images, and the arguments of each call so far."""


def open_remembering(corpus: Path) -> list[Tool]:
    """The tools of `open_tools`, each as `Remembering`."""
    return [Remembering(tool) for tool in open_tools(corpus)]


class Remembering:
    """A tool over `tool`, for models whose calls give the same whenever they are made.

    The study's arms write the same few programs about the same signs thousands of times, and a
    quarter of its time went into running them again. A session of `tool` is opened only where a
    call is new; it is given the earlier calls first. Errors are not remembered: time may have
    caused them.
    """

    def __init__(self, tool: Tool) -> None:
        self.name = tool.name
        self.schema = tool.schema
        self.results: dict[Calls, ToolResult] = {}
        self._tool = tool

    async def open(self, images: Sequence[bytes]) -> ToolSession:
        return _Session(self._tool, images, self.results)

    async def aclose(self) -> None:
        await self._tool.aclose()


class _Session:
    def __init__(
        self, tool: Tool, images: Sequence[bytes], results: dict[Calls, ToolResult]
    ) -> None:
        self._tool = tool
        self._images = images
        self._results = results
        self._made: Calls = (sha256(b"".join(sha256(i).digest() for i in images)).hexdigest(),)
        self._behind: list[dict[str, Any]] = []
        self._session: ToolSession | None = None

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        self._made = (*self._made, json.dumps(arguments, sort_keys=True))
        if self._session is None and (known := self._results.get(self._made)) is not None:
            self._behind.append(arguments)
            return known
        if self._session is None:
            self._session = await self._tool.open(self._images)
            for earlier in self._behind:
                await self._session.call(earlier)
        result = await self._session.call(arguments)
        if not result.is_error:
            self._results[self._made] = result
        return result

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
