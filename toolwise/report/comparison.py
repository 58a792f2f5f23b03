"""Checkpoints of several runs beside each other: a table for the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolwise.evaluation.comparability import Measurement, unlike
from toolwise.evaluation.labels import METRICS, MODE_LABELS
from toolwise.evaluation.metrics import OVERALL, ToolsOnMode
from toolwise.report import drawing
from toolwise.report.drawing import BACKGROUND, MARKERS, MUTED, PALETTE
from toolwise.report.measures import STAGE_LABELS, Measure, label

SHOWN = ("accuracy", "tool_call_rate", "redundant_call_rate", "necessary_call_rate")


class Compared(NamedTuple):
    """A checkpoint: the run it is from, its stage, and its `metrics.json`."""

    run: str
    stage: str
    metrics: Mapping[str, Any]

    def measure(self, metric: str, mode: ToolsOnMode) -> Measure | None:
        """One overall metric; None where it was not measured."""
        entry = self.metrics.get(mode, {}).get(OVERALL, {}).get(metric)
        if entry is None or entry["value"] is None:
            return None
        return Measure(entry["value"], entry["count"], entry["low"], entry["high"])


def print_comparison(
    compared: Sequence[Compared], console: Console, mode: ToolsOnMode = "greedy"
) -> None:
    """Print accuracy and call rates with their intervals, run by run.

    Runs measured on other items, or otherwise, than the first are marked: their figures do not
    compare.
    """
    first = Measurement.model_validate(compared[0].metrics)
    why: dict[str, None] = {}
    for run in dict.fromkeys(one.run for one in compared):
        rows = [one for one in compared if one.run == run]
        measured = (Measurement.model_validate(one.metrics) for one in rows)
        strange = [reason for one in measured for reason in unlike(one, first, mode)]
        why |= dict.fromkeys(strange)
        console.print(_table(f"{run} *" if strange else run, rows, mode))
        console.print()
    console.print(f"{MODE_LABELS[mode]}: value [95% interval].")
    if why:
        console.print(f"* not comparable with the first run: {'; '.join(why)}", soft_wrap=True)


def _table(title: str, rows: Sequence[Compared], mode: ToolsOnMode) -> Table:
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("")
    for metric in SHOWN:
        table.add_column(METRICS[metric].label, justify="right", no_wrap=True)
    for one in rows:
        found = (one.measure(metric, mode) for metric in SHOWN)
        cells = (Text("–" if measure is None else measure.format()) for measure in found)
        table.add_row(label(one.stage), *cells)
    return table


def comparison_plot(compared: Sequence[Compared], mode: ToolsOnMode = "greedy") -> bytes:
    """Accuracy against tool-call rate, and needed calls against needless ones, as SVG.

    A colour per stage and a shape per run; the best corner is the upper left one.
    """
    figure, rows = drawing.grid(1, 2, panel=(4.6, 4.2))
    left, right = rows[0]
    colours = _looks((one.stage for one in compared), PALETTE, tuple(STAGE_LABELS))
    markers = _looks((one.run for one in compared), MARKERS)
    for one in compared:
        look = {"color": colours[one.stage], "marker": markers[one.run]}
        _point(left, one.measure("tool_call_rate", mode), one.measure("accuracy", mode), look)
        _point(
            right,
            one.measure("redundant_call_rate", mode),
            one.measure("necessary_call_rate", mode),
            look,
        )
    for axes, title, across, up in (
        (left, "Accuracy and tool use", "Tool-call rate", "Accuracy"),
        (right, "Calls by need", "Calls where none is needed", "Calls where one is needed"),
    ):
        drawing.title(axes, title)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.set_xlim(-0.06, 1.06)
        axes.set_ylim(-0.06, 1.06)
        drawing.percent(axes)
    stages = [_handle(label(stage), colour, "s") for stage, colour in colours.items()]
    runs = [_handle(run, MUTED, marker) for run, marker in markers.items()]
    drawing.legend(figure, [*stages, *runs], columns=3)
    return drawing.svg(figure)


def _point(axes: Axes, x: Measure | None, y: Measure | None, look: Mapping[str, Any]) -> None:
    if x is None or y is None:
        return
    axes.errorbar(
        x.value,
        y.value,
        xerr=[[x.below], [x.above]],
        yerr=[[y.below], [y.above]],
        markersize=7.5,
        markeredgecolor=BACKGROUND,
        markeredgewidth=0.8,
        linewidth=1.2,
        **look,
    )


def _looks(
    names: Iterable[str], choices: Sequence[str], first: Sequence[str] = ()
) -> dict[str, str]:
    """A look for each name; those in `first` have theirs whatever stands beside them."""
    wanted = list(dict.fromkeys(names))
    order = list(dict.fromkeys([*first, *wanted]))
    looks = dict(zip(order, cycle(choices), strict=False))
    return {name: looks[name] for name in wanted}


def _handle(name: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7, label=name)
