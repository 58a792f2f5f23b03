"""The report on a terminal, 80 columns wide."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolwise.evaluation.labels import METRICS, MODE_LABELS
from toolwise.report.measures import Report, abilities, label, measure, read_report, stages

_SHOWN = (
    "accuracy",
    "tool_call_rate",
    "redundant_call_rate",
    "necessary_call_rate",
    "calls_per_rollout",
)
"""What fits a screen; the page has every metric."""


def print_report(report_json: Path, console: Console) -> None:
    """Print the stages with their intervals, the gate's decision and the seconds per step.

    Raises:
        InputError: there is no report at `report_json`.
    """
    report = read_report(report_json)
    for mode in MODE_LABELS:
        console.print(_stages_table(report, mode))
    console.print(_gate_table(report))
    console.print(_seconds_table(report))


def _table(title: str | Text) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _stages_table(report: Report, mode: str) -> Table:
    table = _table(f"{MODE_LABELS[mode]}: value [95% interval]")
    table.add_column("")
    for stage in stages(report):
        table.add_column(label(stage), justify="right", no_wrap=True)
    for ability in abilities(report):
        table.add_row(Text(ability, style="bold"))
        for name in _SHOWN:
            look = METRICS[name]
            found = (measure(report, stage, name, mode, ability) for stage in stages(report))
            cells = (Text("–" if m is None else m.format(look.digits)) for m in found)
            table.add_row(f"  {look.label}", *cells)
    return table


def _gate_table(report: Report) -> Table | Text:
    gate = report.get("gate")
    if gate is None:
        return Text("Gate: not reached in this run.")
    style = "bold green" if gate["decision"] == "promote" else "bold red"
    table = _table(Text.assemble("Gate: ", (gate["decision"], style)))
    table.add_column("")
    for column in ("Ability", "Value", "Bound", "Threshold", "Verdict"):
        table.add_column(column, justify="left" if column in ("Ability", "Verdict") else "right")
    for criterion in gate["criteria"]:
        passed = criterion["verdict"] == "pass"
        table.add_row(
            Text(criterion["name"].replace("_", " ")),
            Text(criterion["group"]),
            *(_number(criterion[key]) for key in ("value", "bound", "threshold")),
            Text(criterion["verdict"], style="green" if passed else "red"),
        )
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _seconds_table(report: Report) -> Table:
    table = _table("Seconds per step")
    table.add_column("")
    table.add_column("", justify="right")
    for step, seconds in report["seconds"].items():
        table.add_row(Text(step), f"{seconds:.1f}")
    table.add_row("all", f"{sum(report['seconds'].values()):.1f}", style="bold")
    return table
