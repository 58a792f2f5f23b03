"""What a sandbox is, how strong it is, and what it allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from toolwise.tools.base import ToolResult


class Isolation(StrEnum):
    """How far code is kept from the host, weakest first."""

    NONE = "none"
    BUBBLEWRAP = "bubblewrap"
    GVISOR = "gvisor"

    def satisfies(self, lowest: Isolation) -> bool:
        """Whether this level is `lowest` or stronger."""
        order = list(Isolation)
        return order.index(self) >= order.index(lowest)


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Bounds on one session.

    Args:
        seconds: wall time of a call.
        memory_mb: address space of each process, and memory in use of all together.
        processes: processes and threads at a time.
        disk_mb: everything under /tmp.
        text_chars: text a call may print; the rest is cut with a note.
        images: images a call may show.
        pixels: size of all of them together; the host encodes them after the call.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    processes: int = 16
    disk_mb: int = 32
    text_chars: int = 8000
    images: int = 8
    pixels: int = 8_000_000


DEFAULT_LIMITS = SandboxLimits()


class SandboxSession(Protocol):
    """Variables and files of one trajectory. Blocks: for threads, not for the event loop."""

    def call(self, code: str) -> ToolResult:
        """Run code; its failures are in the result. Raises `BackendError` where ours fails."""
        ...

    def close(self) -> None:
        """End the session and what it started, at once; safe to call twice, and during a call."""
        ...


class Sandbox(Protocol):
    """Makes sessions. Safe to use from many threads."""

    isolation: Isolation
    """What it gives, not what was asked for."""
    concurrency: int
    """How many calls may run at once."""

    def open(self, images: Sequence[bytes]) -> SandboxSession:
        """A session with `images` (encoded) preloaded; costs nothing until its first call."""
        ...

    def close(self) -> None:
        """End every session and process."""
        ...
