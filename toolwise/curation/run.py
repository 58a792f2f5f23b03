"""What both curations do with their rows: read them, run filters, publish what became of them."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel

from toolwise.curation.filtering import Filter, Filtering
from toolwise.curation.judge import JudgePanel, JudgeSettings, LlmJudge
from toolwise.curation.report import CurationReport, FilterCount, count, count_filters
from toolwise.curation.samples import chosen_rows, sample
from toolwise.curation.workbench import Workbench
from toolwise.data import Task, Trajectory
from toolwise.data.parquet import Rejects
from toolwise.progress import Progress
from toolwise.storage import atomic_directory

Row = TypeVar("Row", Task, Trajectory)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the rows, by number; those that wait are in none of these.

    Args:
        kept: the result, with the kind of each row (`tool-using`, `not tried`, …).
        rejected: dropped rows with the reason.
        aside: rows set aside with the reason.
        not_needed: how many rows are beyond what was asked for.
        figures: anything measured on the way, by ability.
        notes: what else a person should know, a sentence each.
    """

    kept: Mapping[int, str]
    rejected: Mapping[int, str]
    aside: Mapping[int, str] = field(default_factory=dict)
    not_needed: int = 0
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class CurationRun(ABC, Generic[Row]):
    """One curation at work on the rows of a workbench.

    Args:
        bench: the rows, a model, tools, and a place for verdicts.
        settings: what it runs with, for the report.
        judge: the judge, where one is asked.
        progress: told rows done, rows in all, the filter's name.
    """

    step: ClassVar[str]
    rejects: Rejects
    """Rows that cannot be read; there by the time `rows` has been read."""

    def __init__(
        self,
        bench: Workbench,
        settings: BaseModel,
        judge: JudgeSettings | None,
        progress: Progress | None,
    ) -> None:
        self.bench = bench
        self.ids: list[str] = []
        self.abilities: list[str] = []
        self.sources: list[str] = []
        for row in self.rows():
            task = row.task if isinstance(row, Trajectory) else row
            self.ids.append(task.id)
            self.abilities.append(task.ability)
            self.sources.append(task.source)
        self.filtering = Filtering(
            self.rows, len(self.ids), bench.verdicts, bench.identity, progress
        )
        self.judge = LlmJudge(judge, bench.verdicts) if judge else None
        self.waiting: set[int] = set()
        self._report_settings = settings

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """All rows that can be read, the same each time."""

    @abstractmethod
    def write_rows(self, path: Path, rows: Iterable[Row], reasons: Iterable[str] | None) -> None:
        """Write rows as Parquet, with reasons where they are given."""

    def select(self, numbers: Collection[int]) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, in ascending order."""
        return ((number, row) for number, row in enumerate(self.rows()) if number in numbers)

    def finished(self, number: int, row: Row) -> Row:
        """A row as the result has it."""
        return row

    def rank(self, number: int) -> bytes:
        """The row's place in a random order that the seed decides."""
        return self.bench.rank(number, self.ids[number])

    async def ask_judge(self, panel: JudgePanel[Row], judging: Filter[Row]) -> None:
        """Run the filter that asks the panel; rows it could not decide wait.

        Raises:
            BackendError: more wait than may.
        """
        self.waiting.update(await self.filtering.run(judging))
        panel.settle(self.waiting)

    def filter_counts(self) -> list[FilterCount]:
        """What each filter did so far."""
        return count_filters(self.filtering.logs, self.abilities, self.sources)

    def publish(self, out_dir: Path, outcome: Outcome) -> CurationReport:
        """Write the rows, those that went with their reasons, and the account; all or nothing."""
        notes = [self.judge.account()] if self.judge else []
        shown = chosen_rows(self.filtering.logs)
        report = CurationReport(
            step=self.step,
            seed=self.bench.seed,
            settings=self._report_settings.model_dump(),
            read=len(self.ids),
            unreadable=self.rejects.count,
            waiting=len(self.waiting),
            not_needed=outcome.not_needed,
            kept=count(self.abilities[number] for number in outcome.kept),
            composition=count(outcome.kept.values()),
            filters=self.filter_counts(),
            figures=outcome.figures,
            notes=notes + outcome.notes,
            read_by_source=count(self.sources),
            kept_by_source=count(self.sources[number] for number in outcome.kept),
            samples=[sample(row, *shown[number]) for number, row in self.select(shown)],
        )
        with atomic_directory(out_dir) as room:
            kept = (self.finished(*item) for item in self.select(outcome.kept))
            self.write_rows(room / "curated.parquet", kept, None)
            self._write_reasons(room / "rejected.parquet", outcome.rejected)
            if outcome.aside:
                self._write_reasons(room / "aside.parquet", outcome.aside)
            if self.waiting:
                waiting = (row for _, row in self.select(self.waiting))
                self.write_rows(room / "waiting.parquet", waiting, None)
            if self.rejects.count:
                shutil.copy(self.rejects.path, room / "rejects.jsonl")
            report.write(room)
        return report

    def _write_reasons(self, path: Path, reasons: Mapping[int, str]) -> None:
        rows = (row for _, row in self.select(reasons))
        self.write_rows(path, rows, [reasons[number] for number in sorted(reasons)])
