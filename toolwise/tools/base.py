"""What a tool is: a JSON schema the model reads, and a session per trajectory that runs calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class ToolError(Exception):
    """The model used the tool wrongly; the message goes back to the model as the result.

    Faults of the infrastructure are :class:`toolwise.errors.BackendError` and stop the step.
    """


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What one call gave back.

    Args:
        text: printed text, or the error the model reads.
        images: encoded images the call showed, in order.
        is_error: the call failed through the model's own doing.
        seconds: wall time spent in the tool.
    """

    text: str
    images: tuple[bytes, ...] = ()
    is_error: bool = False
    seconds: float = 0.0


class ToolSession(Protocol):
    """The state of one tool for one trajectory (variables, preloaded images)."""

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        """Run one call; raises `ToolError` (model's fault) or `BackendError` (ours)."""
        ...

    async def close(self) -> None:
        """Give back processes and files; safe to call twice."""
        ...


class Tool(Protocol):
    """A tool as the agent loop sees it."""

    name: str
    schema: dict[str, Any]
    """OpenAI function schema: `{"type": "function", "function": {"name", …, "parameters"}}`."""

    async def open(self, images: Sequence[bytes]) -> ToolSession:
        """Start a session for one trajectory whose task carries `images`."""
        ...

    async def aclose(self) -> None:
        """Stop everything the tool started (worker processes, connections)."""
        ...
