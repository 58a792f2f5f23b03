"""What a curation did: counts for every filter, ability and source, and rows it dropped."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from toolwise.curation.samples import Sample, kind_of
from toolwise.curation.verdicts import VerdictLog
from toolwise.markdown import table
from toolwise.pages import render

_CELL = 200
"""Longest text in a cell of a Markdown table."""


@dataclass(frozen=True, slots=True)
class FilterCount:
    """How many rows one filter looked at, dropped and set aside, and for what reasons."""

    name: str
    seen: int
    dropped: int
    seconds: float
    reasons: dict[str, int]
    seen_by_ability: dict[str, int]
    dropped_by_ability: dict[str, int]
    aside: int = 0
    seen_by_source: dict[str, int] = field(default_factory=dict)
    dropped_by_source: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CurationReport:
    """The account of one curation.

    Args:
        step: `sft` or `rl`.
        seed: the run's seed.
        settings: what it ran with.
        read: rows that could be read.
        unreadable: rows that could not; `rejects.jsonl` names them.
        waiting: rows left out because the judge failed on them.
        not_needed: rows not tried, or beyond the number asked for.
        kept: rows of the result by ability.
        composition: rows of the result by kind (`tool-using`, `tool-free`, …).
        filters: the filters in the order they ran.
        figures: anything measured on the way, by ability.
        notes: what else a person should know, a sentence each.
        read_by_source, kept_by_source: rows by the data set they came from.
        samples: a few rows of each kind that was dropped.
    """

    step: str
    seed: int
    settings: dict[str, Any]
    read: int
    unreadable: int
    waiting: int
    not_needed: int
    kept: dict[str, int]
    composition: dict[str, int]
    filters: list[FilterCount]
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    read_by_source: dict[str, int] = field(default_factory=dict)
    kept_by_source: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def write(self, directory: Path) -> None:
        """Write `report.json`, `report.md` and `report.html`; pictures are in the last only."""
        document = json.dumps(
            asdict(replace(self, samples=[s.in_words() for s in self.samples])),
            indent=2,
            ensure_ascii=False,
        )
        (directory / "report.json").write_text(document + "\n", encoding="utf-8")
        (directory / "report.md").write_text(self.markdown(), encoding="utf-8")
        (directory / "report.html").write_text(self.html(), encoding="utf-8")

    @property
    def remarks(self) -> list[str]:
        """What became of the rows that are in neither file, and the notes; a sentence each."""
        remarks: list[str] = []
        if self.unreadable:
            remarks.append(f"{self.unreadable} rows could not be read: see `rejects.jsonl`.")
        if self.waiting:
            remarks.append(f"{self.waiting} rows wait for the judge: see `waiting.parquet`.")
        if self.not_needed:
            remarks.append(f"{self.not_needed} rows were not needed any more.")
        return remarks + self.notes

    def markdown(self) -> str:
        """The report for a person with a terminal."""
        total = sum(self.kept.values())
        lines = [f"# Curation for {self.step.upper()}", ""]
        lines += [f"{self.read} rows read, {total} kept (seed {self.seed})."]
        for remark in self.remarks:
            lines += ["", remark]
        filters = [
            [f.name, f.seen, f.dropped, f.aside, _list(f.dropped_by_ability), _list(f.reasons)]
            for f in self.filters
        ]
        head = ["filter", "seen", "dropped", "set aside", "by ability", "why"]
        lines += ["", _table(head, filters)]
        lines += ["", _table(["ability", "kept"], list(self.kept.items()))]
        lines += ["", _table(["kind", "kept"], list(self.composition.items()))]
        if self.read_by_source:
            head = ["source", "read", *(f"dropped by {f.name}" for f in self.filters), "kept"]
            lines += ["", _table(head, self.source_rows())]
        if self.figures:
            names = list(next(iter(self.figures.values())))
            rows = [[a, *(f"{f[n]:.3f}" for n in names)] for a, f in self.figures.items()]
            lines += ["", _table(["ability", *names], rows)]
        if self.samples:
            rows = [[s.filter, s.reason, s.source, s.id, s.question] for s in self.samples]
            lines += ["", "## Dropped rows, for example", ""]
            lines += [_table(["filter", "why", "source", "id", "question"], rows)]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """The report as one page, with the pictures of the rows it shows."""
        return render(
            "toolwise.curation", "report.html", {}, report=self, total=sum(self.kept.values())
        )

    def source_rows(self) -> list[list[Any]]:
        """For each source: its name, rows read, rows dropped by each filter, rows kept."""
        return [
            [
                source,
                read,
                *(f.dropped_by_source.get(source, 0) for f in self.filters),
                self.kept_by_source.get(source, 0),
            ]
            for source, read in self.read_by_source.items()
        ]


def count_filters(
    logs: Mapping[str, VerdictLog], abilities: Sequence[str], sources: Sequence[str]
) -> list[FilterCount]:
    """Counts of every filter; `abilities` and `sources` hold one entry per row."""
    counts = []
    for name, log in logs.items():
        verdicts = list(log.items())
        out = [(row, verdict) for row, verdict in verdicts if not verdict.keep]
        dropped = [(row, verdict) for row, verdict in out if not verdict.aside]
        counts.append(
            FilterCount(
                name=name,
                seen=len(verdicts),
                dropped=len(dropped),
                seconds=round(log.seconds, 3),
                reasons=count(kind_of(verdict) for _, verdict in out),
                seen_by_ability=count(abilities[row] for row, _ in verdicts),
                dropped_by_ability=count(abilities[row] for row, _ in dropped),
                aside=len(out) - len(dropped),
                seen_by_source=count(sources[row] for row, _ in verdicts),
                dropped_by_source=count(sources[row] for row, _ in dropped),
            )
        )
    return counts


def count(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, by name."""
    return dict(sorted(Counter(names).items()))


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "–"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return table(head, (list(map(_short, row)) for row in rows))


def _short(value: Any) -> str:
    """Shown as it is, on one line; a long one cut short."""
    # Markdown takes a backslash for an escape; the table sees to those before a bar.
    text = re.sub(r"\\(?!\\*\|)", r"\\\\", " ".join(str(value).split()))
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
