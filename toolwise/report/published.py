"""The paper's accuracy tables with one's own evaluations as further rows.

The paper's figures stand in `published.yaml` beside this file, with their source; they are shown as
what they are, published and not measured here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolwise.errors import InputError
from toolwise.evaluation.labels import METRICS
from toolwise.evaluation.metrics import OVERALL, Metric
from toolwise.markdown import table as markdown_table

PUBLISHED = "published, not measured here"
MEASURED = "measured with Toolwise"
EMPTY = "–"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Section):
    """A benchmark, by its name in `toolwise.evaluation.benchmarks` and as the paper heads it."""

    benchmark: str
    heading: str


class PaperRow(_Section):
    """A model's scores in percent, a column each; None where the paper gives none."""

    model: str
    group: str
    scores: tuple[float | None, ...]


class PublishedTable(_Section):
    """One of the paper's tables; `average` adds the mean of each full row."""

    title: str
    average: bool = False
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[PaperRow, ...]

    @model_validator(mode="after")
    def _full_rows(self) -> Self:
        for row in self.rows:
            if len(row.scores) != len(self.columns):
                raise ValueError(f"{row.model} has {len(row.scores)} scores")
        return self


class PublishedFigures(_Section):
    """What `published.yaml` holds: the paper, the page the figures were read off, the tables."""

    paper: str
    url: str
    source: str
    tables: tuple[PublishedTable, ...]


@cache
def published_figures() -> PublishedFigures:
    """The paper's tables."""
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return PublishedFigures.model_validate(yaml.safe_load(text))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One of one's own evaluations of a published benchmark.

    Args:
        model: the served model's name, or the folder the evaluation lies in.
        benchmark: its name.
        title: as people know it.
        score: the benchmark's own headline, in [0, 1], of the greedy answers.
        low, high: its 95% interval, where the score is the share of right answers.
        tool_use: overall metrics of the greedy answers, by name.
        scored_by: greedy answers by who scored them.
    """

    model: str
    benchmark: str
    title: str
    score: float
    low: float | None
    high: float | None
    tool_use: dict[str, Metric]
    scored_by: dict[str, int]

    def percent(self) -> str:
        """`86.4 [80.8, 90.5]`."""
        value = f"{100 * self.score:.1f}"
        if self.low is None or self.high is None:
            return value
        return f"{value} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def read_evaluation(folder: Path) -> Evaluation:
    """What `toolwise.evaluation.runner.evaluate` wrote to `folder`.

    Raises:
        InputError: it is not an evaluation of a published benchmark.
    """
    path = folder / "metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        published, overall = metrics["published"], metrics["greedy"][OVERALL]
        score, accuracy = published["figures"]["score"], overall["accuracy"]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{folder}: not an evaluation of a published benchmark") from None
    is_accuracy = abs(score - accuracy["value"]) < 1e-9
    return Evaluation(
        model=metrics["model"]["model"] if "model" in metrics else folder.absolute().parent.name,
        benchmark=published["name"],
        title=published["title"],
        score=score,
        low=accuracy["low"] if is_accuracy else None,
        high=accuracy["high"] if is_accuracy else None,
        tool_use=overall,
        scored_by=published["scored_by"],
    )


class Line(NamedTuple):
    """A row as shown: what it says in each column, the first being the model."""

    cells: tuple[str, ...]
    group: str
    measured: bool


def headings(table: PublishedTable) -> list[str]:
    """The table's columns after the model's."""
    return [column.heading for column in table.columns] + ["Avg."] * table.average


def lines(table: PublishedTable, evaluations: Sequence[Evaluation]) -> Iterator[Line]:
    """The published rows, then one per model measured on any of the table's benchmarks.

    Raises:
        InputError: two evaluations are of one model on one benchmark.
    """
    for row in table.rows:
        cells = [EMPTY if score is None else f"{score:.1f}" for score in row.scores]
        average = _average(row.scores) if table.average else ()
        yield Line((row.model, *cells, *average), row.group, measured=False)
    found: dict[str, dict[str, Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.benchmark in {column.benchmark for column in table.columns}:
            of_model = found.setdefault(evaluation.model, {})
            if evaluation.benchmark in of_model:
                raise InputError(
                    f"two evaluations are of {evaluation.model} on {evaluation.title}; "
                    "name one of them only"
                )
            of_model[evaluation.benchmark] = evaluation
    for model, of_model in found.items():
        own = [of_model.get(column.benchmark) for column in table.columns]
        cells = [EMPTY if one is None else one.percent() for one in own]
        scores = [None if one is None else 100 * one.score for one in own]
        average = _average(scores) if table.average else ()
        yield Line((model, *cells, *average), "Your models", measured=True)


def _average(scores: Sequence[float | None]) -> tuple[str]:
    known = [score for score in scores if score is not None]
    return (f"{fmean(known):.1f}" if len(known) == len(scores) else EMPTY,)


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """The tables as Markdown, and below them what the models did with their tools."""
    figures = published_figures()
    parts = [_note()]
    for table in figures.tables:
        head = ["Model", *headings(table), "Source"]
        rows = [
            [*line.cells, MEASURED if line.measured else PUBLISHED]
            for line in lines(table, evaluations)
        ]
        parts += [f"## {table.title}", markdown_table(head, rows, numbers=1)]
    if evaluations:
        head = ["Model", "Benchmark", *(METRICS[name].label for name in METRICS), "Scored by"]
        parts += [
            "## Tool use of your models",
            markdown_table(head, _tool_use(evaluations), numbers=1),
        ]
    return "\n\n".join(parts) + "\n"


def _note() -> str:
    figures = published_figures()
    return (
        f"Scores in percent. Rows of the paper ({figures.paper}, {figures.url}) are {PUBLISHED}; "
        f"its figures as in {figures.source}. Other rows are {MEASURED}, greedy answers with "
        "tools on, with 95% intervals where the score is the share of right answers."
    )


def _tool_use(evaluations: Iterable[Evaluation]) -> Iterator[list[str]]:
    for one in evaluations:
        by = ", ".join(f"{who} {count}" for who, count in one.scored_by.items())
        shown = (_metric(one.tool_use[name], METRICS[name].digits) for name in METRICS)
        yield [one.model, one.title, *shown, by]


def _metric(metric: Metric, digits: int) -> str:
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return EMPTY
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_published(
    evaluations: Sequence[Evaluation], console: Console, *, only_measured: bool = False
) -> None:
    """Print the tables, the rows of one's own in bold.

    Args:
        evaluations: of published benchmarks.
        console: where to.
        only_measured: leave out the benchmarks none of `evaluations` is of.
    """
    measured = {evaluation.benchmark for evaluation in evaluations}
    for table in published_figures().tables:
        shown = [
            place
            for place, column in enumerate(table.columns, 1)
            if not only_measured or column.benchmark in measured
        ]
        if not shown:
            continue
        if table.average and not only_measured:
            shown.append(len(table.columns) + 1)
        console.print(_terminal_table(table, evaluations, shown))
    if evaluations:
        tools = _plain_table("Tool use of your models")
        head = ["", *(f"{one.model}: {one.title}" for one in evaluations)]
        for heading in head:
            tools.add_column(heading, justify="right" if heading else "left")
        columns = [row[2:] for row in _tool_use(evaluations)]
        labels = [*(METRICS[name].label for name in METRICS), "Scored by"]
        for label, *cells in zip(labels, *columns, strict=True):
            tools.add_row(Text(label), *map(Text, cells))
        console.print(tools)
    console.print(Text(_note(), style="dim"))


def _terminal_table(
    table: PublishedTable, evaluations: Sequence[Evaluation], shown: Sequence[int]
) -> Table:
    drawn = _plain_table(table.title)
    drawn.add_column("Model")
    for place in shown:
        drawn.add_column(headings(table)[place - 1], justify="right")
    drawn.add_column("")
    group = ""
    for line in lines(table, evaluations):
        if line.group != group:
            group = line.group
            drawn.add_row(Text(group, style="italic"))
        drawn.add_row(
            Text(line.cells[0]),
            *(Text(line.cells[place]) for place in shown),
            Text("measured" if line.measured else "published"),
            style="bold" if line.measured else "",
        )
    return drawn


def _plain_table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
