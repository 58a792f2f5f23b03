"""A run as a person sees it from afar: the state of each step, its log, and how it ended."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console
from rich.text import Text

from pipelines.plan import Plan
from pipelines.submission.api import PipelinesApi, Run, ServerAway, TaskDetail
from pipelines.submission.pod_logs import PodLogs
from toolwise.console import Display, LineDisplay, LiveDisplay, RunBoard
from toolwise.errors import BackendError, ToolwiseError
from toolwise.events import Event

POLL = 5.0
"""Seconds between two looks."""
PATIENCE = 600.0
"""Seconds the server may be away before it is given up; the run goes on without us."""
SHOWN = 20
"""Last lines of a failed step's log that the error quotes."""

_PROGRESS = re.compile(r"[^:]+: progress (\d+)/(\d+) ?(.*)")
_ATTEMPT = re.compile(r"\(\d+[^)]*\)$")


class RunFailed(ToolwiseError):
    """The run ended, and not well."""


class LostSight(BackendError):
    """The run cannot be followed any longer; it goes on without us."""

    exit_status = 3


@contextmanager
def in_sight(again: str) -> Iterator[None]:
    """Turn what keeps us from a run into `LostSight`, with the command that follows it `again`."""
    try:
        yield
    except LostSight:
        raise
    except BackendError as fault:
        raise LostSight(f"{fault}\n{how_to_go_on(again)}") from None


@dataclass
class Follower:
    """Follows one run.

    Args:
        api: the server.
        run_id: the run's.
        again: the command that follows it again.
        plan: its pipeline.
        console: where to show it.
        logs: the pods' logs.
        poll, patience: see `POLL` and `PATIENCE`.
        wait: waits so many seconds.
    """

    api: PipelinesApi
    run_id: str
    again: str
    plan: Plan
    console: Console
    logs: PodLogs
    poll: float = field(default_factory=lambda: POLL)
    patience: float = PATIENCE
    wait: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._board = RunBoard.of(self.plan.steps)
        self._seen: dict[str, tuple[str, int, int]] = {}
        self._tails: dict[str, deque[str]] = {}
        self._noted = ""

    def follow(self) -> Run:
        """Wait for the end of the run, showing how it goes.

        Returns:
            The run, which has succeeded.

        Raises:
            RunFailed: it failed, or somebody stopped it.
            LostSight: the server stayed away, or turned us away; the run goes on.
            InputError: there is no such run.
        """
        with in_sight(self.again):
            run = self._to_the_end()
        if run.state != "SUCCEEDED":
            raise RunFailed(self._failure(run))
        return run

    def _to_the_end(self) -> Run:
        live = self.console.is_terminal
        display = LiveDisplay(self._board, self.console) if live else LineDisplay(self.console)
        away = 0.0
        with display:
            while True:
                try:
                    run = self._look(display)
                    away = 0.0
                except ServerAway as fault:
                    away += self.poll
                    self._note(f"{fault}; the run goes on, and so do we")
                    if away > self.patience:
                        raise BackendError(
                            f"the server has been away for {self.patience:g} seconds: {fault}"
                        ) from None
                    self._revive()
                else:
                    if run.ended:
                        break
                self.wait(self.poll)
            self._hear(display)
            self._board.close()
        return run

    def _look(self, display: Display) -> Run:
        run = self.api.run(self.run_id)
        if run.state is None:
            raise ServerAway(f"{self.api.server.url} says nothing of the run's state")
        if run.state in ("CANCELING", "PAUSED"):
            self._note(f"the run is {run.state.lower()}")
        by_step: dict[str, list[TaskDetail]] = {}
        for task in run.tasks:
            name = step_name(task.display_name, self.plan.labels)
            if name in self.plan.steps:
                by_step.setdefault(name, []).append(task)
        for name, tasks in by_step.items():
            self._tell(display, name, tasks)
        if not run.ended:
            self._hear(display)
        return run

    def _tell(self, display: Display, name: str, tasks: list[TaskDetail]) -> None:
        """Show a step where its state has changed; several tasks of a name are one step's parts."""
        states = Counter(task.state or "PENDING" for task in tasks)
        done = states["SUCCEEDED"]
        if states["FAILED"] or states["CANCELED"]:
            state = "failed"
        elif done == len(tasks):
            state = "finished"
        elif states["RUNNING"] or done:
            state = "started"
        else:
            return
        before = self._seen.get(name)
        self._seen[name] = (state, done, len(tasks))
        begun = min((t.start_time for t in tasks if t.start_time), default=None)
        if before is None and state != "started":
            self._show(display, Event(step=name, state="started", at=_epoch(begun)))
        if before is None or before[0] != state:
            ended = max((t.end_time for t in tasks if t.end_time), default=None)
            seconds = _epoch(ended) - _epoch(begun) if begun and ended else 0.0
            why = next((t.error.message for t in tasks if t.error), "")
            if not why and states["CANCELED"] and not states["FAILED"]:
                why = "cancelled"
            at = _epoch(begun if state == "started" else ended)
            self._show(
                display,
                Event(step=name, state=state, at=at, seconds=max(seconds, 0.0), note=why),
            )
        if state == "started" and len(tasks) > 1 and before != self._seen[name]:
            progress = Event(
                step=name, state="progress", at=time.time(), done=done, total=len(tasks)
            )
            self._show(display, progress)

    def _hear(self, display: Display) -> None:
        """Show what the pods have written since the last look."""
        for task, text in self.logs.new():
            name = self.plan.labels.get(task, task)
            self._tails.setdefault(name, deque(maxlen=SHOWN)).append(text)
            if progress := _PROGRESS.fullmatch(text):
                done, total, note = progress.groups()
                self._show(
                    display,
                    Event(
                        step=name,
                        state="progress",
                        at=time.time(),
                        done=int(done),
                        total=int(total),
                        note=note,
                    ),
                )
            else:
                line = Text.assemble((f"{name} | ", "dim"), text)
                self.console.print(line, soft_wrap=True)
        if self.logs.unavailable:
            self._note(f"no logs: {self.logs.unavailable}")

    def _show(self, display: Display, event: Event) -> None:
        display.changed(event, self._board.take(event))

    def _note(self, text: str) -> None:
        """Say something about the following itself, once."""
        if text != self._noted:
            self._noted = text
            self.console.print(Text(text, style="yellow"), soft_wrap=True)

    def _revive(self) -> None:
        try:
            self.api.server.revive()
        except BackendError as error:
            self._note(str(error))

    def _failure(self, run: Run) -> str:
        if run.state == "CANCELED":
            return f"run {self.run_id} was cancelled"
        lines = [f"run {self.run_id} {(run.state or '').lower()}"]
        if run.error and run.error.message:
            lines.append(run.error.message)
        for row in self._board.rows:
            if row.state == "failed":
                lines.append(f"{row.name} failed{f': {row.note}' if row.note else ''}")
                lines += [f"    {line}" for line in self._tails.get(row.name, ())]
        return "\n".join(lines)


def step_name(task: str, labels: Mapping[str, str]) -> str:
    """What people call the step of a task; a task that is tried again is the same step."""
    bare = _ATTEMPT.sub("", task)
    return labels.get(bare, bare)


def how_to_go_on(again: str) -> str:
    """How to follow a run that goes on without us: by this command."""
    return f"The run goes on. Follow it again with\n    {again}"


def _epoch(moment: datetime | None) -> float:
    return time.time() if moment is None else moment.timestamp()
