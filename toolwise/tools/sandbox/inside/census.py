"""What the processes of a session hold together, for the kernel bounds only each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

FIELD = re.compile(rb"^(PPid|RssAnon|VmSwap):\s*(\d+)", re.MULTILINE)
"""Of /proc/<pid>/status, in bytes: a process calls itself what it likes, within one line."""


class Process(NamedTuple):
    """A process as /proc tells it."""

    parent: int
    megabytes: float


def process_ids() -> list[int]:
    """Every process of this pid namespace and those below it."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def megabytes_by_session(sessions: Iterable[int]) -> dict[int, float]:
    """Memory that no file backs, for each session's first process with all it has started.

    Pages that a fork still shares with its parent count for both.
    """
    total = dict.fromkeys(sessions, 0.0)
    processes = dict(_processes())
    for process in processes.values():
        ancestor = process
        while ancestor is not None and ancestor.parent not in total:
            ancestor = processes.get(ancestor.parent)
        if ancestor is not None:
            total[ancestor.parent] += process.megabytes
    for session in total:
        if session in processes:
            total[session] += processes[session].megabytes
    return total


def _processes() -> Iterator[tuple[int, Process]]:
    for pid in process_ids():
        try:
            status = Path(f"/proc/{pid}/status").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        fields = {name: int(value) for name, value in FIELD.findall(status)}
        kilobytes = fields.get(b"RssAnon", 0) + fields.get(b"VmSwap", 0)
        yield pid, Process(fields[b"PPid"], kilobytes / 1000)
