"""What a person sees of a run: a live table on a terminal, one line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleRenderable, RichCast
from rich.live import Live
from rich.table import Table
from rich.text import Text

from toolwise.events import Event

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "finished": ("✓", "green"),
    "reused": ("✓", "blue"),
    "skipped": ("–", "dim"),
    "failed": ("✗", "red"),
}


@dataclass(slots=True)
class StepRow:
    """One step as shown: its state, and how far it is."""

    name: str
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    note: str = ""
    folder: str = ""

    def take(self, event: Event) -> None:
        """Update from one event of this step."""
        match event.state:
            case "started":
                self.state, self.started, self.note = "running", event.at, ""
                self.done = self.total = 0
            case "progress":
                self.done, self.total, self.note = event.done, event.total, event.note
            case "failed":
                self.state, self.seconds = "failed", event.at - self.started
                self.note = event.note
            case "finished" | "reused":
                self.state, self.seconds, self.note = event.state, event.seconds, ""
                self.folder = event.folder

    def elapsed(self, now: float) -> float:
        """Seconds so far, or in all."""
        return now - self.started if self.state == "running" else self.seconds

    def remaining(self, now: float) -> float | None:
        """Estimated seconds left, from the pace so far; None before there is one."""
        if self.state != "running" or not 0 < self.done < self.total:
            return None
        return (now - self.started) * (self.total - self.done) / self.done


@dataclass(slots=True)
class RunBoard:
    """All steps of a run, in the order they are listed."""

    rows: list[StepRow]
    clock: Callable[[], float] = time.time
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @classmethod
    def of(cls, names: Sequence[str]) -> RunBoard:
        return cls([StepRow(name) for name in names])

    def take(self, event: Event) -> StepRow:
        """Update the row of the event's step; a step nobody listed gets a row at the end."""
        for row in self.rows:
            if row.name == event.step:
                break
        else:
            row = StepRow(event.step)
            self.rows.append(row)
        row.take(event)
        return row

    def close(self) -> None:
        """The run has ended: what never started was not needed."""
        for row in self.rows:
            if row.state == "waiting":
                row.state = "skipped"

    def __rich__(self) -> Table:
        now = self.clock()
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for row in self.rows:
            mark, style = MARKS[row.state]
            elapsed = "" if row.state in ("waiting", "skipped") else clock_time(row.elapsed(now))
            table.add_row(
                Text(mark, style=style),
                Text(row.name, style="dim" if row.state in ("waiting", "skipped") else ""),
                elapsed,
                _detail(row, now),
            )
        table.add_row("", Text("total", style="dim"), clock_time(now - self.started), "")
        return table


def _detail(row: StepRow, now: float) -> Text:
    if row.state in ("reused", "skipped"):
        return Text("re-used" if row.state == "reused" else "not run", style="dim")
    if row.state == "failed":
        return Text(row.note.splitlines()[0] if row.note else "", style="red")
    if row.state != "running":
        return Text("")
    text = Text()
    if row.total:
        filled = round(20 * row.done / row.total)
        text.append("━" * filled, style="cyan").append("━" * (20 - filled), style="grey30")
        text.append(f" {row.done}/{row.total}")
    remaining = row.remaining(now)
    if remaining is not None:
        text.append(f"  about {clock_time(remaining)} left", style="dim")
    if row.note:
        text.append(f"  {row.note}", style="dim")
    return text


def clock_time(seconds: float) -> str:
    """`7s`, `3m05s`, `2h04m`."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Display(AbstractContextManager["Display"], Protocol):
    """Shows a `RunBoard` while it changes."""

    def changed(self, event: Event, row: StepRow) -> None:
        """`event` has just been taken up by `row`."""
        ...


class LiveDisplay(Display):
    """The board, redrawn in place four times a second."""

    def __init__(self, board: ConsoleRenderable | RichCast, console: Console) -> None:
        self._live = Live(board, console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def changed(self, event: Event, row: StepRow) -> None:
        """The next redraw shows it."""


class LineDisplay(Display):
    """One line when a step starts and one when it ends, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def changed(self, event: Event, row: StepRow) -> None:
        """Print the event if it is a start or an end."""
        match event.state:
            case "started":
                line = f"{row.name}: started"
            case "finished":
                line = f"{row.name}: done in {clock_time(row.seconds)}"
            case "reused":
                line = f"{row.name}: re-used"
            case "failed":
                line = f"{row.name}: failed after {clock_time(row.seconds)}: {row.note}"
            case _:
                return
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
