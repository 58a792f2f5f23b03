"""What a running step tells whoever watches it: one JSON line per event, in one file per run.

A step is its own process, in a pod or under the local runner, so what it reports has to outlive
and cross it. The file is append-only and each event is a single write: readers never see half.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

EVENTS_VARIABLE = "TOOLWISE_EVENTS"
"""Environment variable naming the file; without it a step prints them."""

State = Literal["started", "progress", "finished", "reused", "failed"]


class Event(BaseModel):
    """One thing that happened to one step.

    Args:
        step: name of the step (`train-sft`, `evaluate hdpo`).
        state: what happened.
        at: seconds since the epoch.
        done, total: progress in the step's own unit; total 0 while unknown.
        note: what it is doing, or why it failed.
        seconds: how long the step took (`finished`, `reused`).
        folder: where its outputs stand (`finished`, `reused`).
    """

    model_config = ConfigDict(frozen=True)

    step: str
    state: State
    at: float
    done: int = 0
    total: int = 0
    note: str = ""
    seconds: float = 0.0
    folder: str = ""


EventSink = Callable[[Event], None]


class FileSink:
    """Appends events to the file a watcher reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: Event) -> None:
        line = event.model_dump_json(exclude_defaults=True) + "\n"
        with self._path.open("ab") as file:
            file.write(line.encode())


def print_event(event: Event) -> None:
    """Print an event, for the log of a pod."""
    of = f" {event.done}/{event.total}" if event.total else ""
    print(f"{event.step}: {event.state}{of} {event.note}".rstrip(), flush=True)


class EventWriter:
    """Tells one step's events; progress no more often than every `interval` seconds."""

    def __init__(self, step: str, sink: EventSink, interval: float = 0.2) -> None:
        self._step = step
        self._sink = sink
        self._interval = interval
        self._last_progress = 0.0

    @classmethod
    def of_environment(cls, step: str) -> EventWriter:
        """The writer of a step: to the file `TOOLWISE_EVENTS` names, or else to its output."""
        path = os.environ.get(EVENTS_VARIABLE)
        return cls(step, FileSink(Path(path))) if path else cls(step, print_event, interval=15.0)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` (0: unknown) units are done; the signature library functions expect."""
        now = time.time()
        if done < total and now - self._last_progress < self._interval:
            return
        self._last_progress = now
        self._tell("progress", at=now, done=done, total=total, note=note)

    def started(self) -> None:
        """The step starts its work."""
        self._tell("started")

    def finished(self, seconds: float, folder: Path) -> None:
        """The step has done its work; its outputs stand in `folder`."""
        self._tell("finished", seconds=seconds, folder=str(folder))

    def reused(self, seconds: float = 0.0, folder: Path | None = None) -> None:
        """An earlier run did the work."""
        self._tell("reused", seconds=seconds, folder=str(folder or ""))

    def failed(self, reason: str) -> None:
        """The step gave up."""
        self._tell("failed", note=reason)

    def _tell(self, state: State, at: float | None = None, **details: Any) -> None:
        self._sink(Event(step=self._step, state=state, at=at or time.time(), **details))


class EventReader:
    """Reads the events that have been appended since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[Event]:
        """Complete lines written since the last call; a line torn by a full disk is passed over."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                try:
                    yield Event.model_validate_json(line)
                except ValidationError:
                    continue
