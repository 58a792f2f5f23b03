"""The results table of a README, written from reports and never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolwise.errors import InputError
from toolwise.evaluation.report.measures import METRICS, Report, label, measure, stages
from toolwise.storage import atomic_file

START = "<!-- results: start -->"
END = "<!-- results: end -->"

_COLUMNS = (
    ("redundant_call_rate", "greedy"),
    ("redundant_call_rate", "sampled"),
    ("necessary_call_rate", "greedy"),
    ("necessary_call_rate", "sampled"),
    ("accuracy", "greedy"),
    ("calls_per_rollout", "greedy"),
)


def write_results(readme: Path, reports: Sequence[Report]) -> None:
    """Replace what stands between the two markers of `readme` by the table of `reports`.

    Raises:
        InputError: the markers are not there, or no report was given.
    """
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise InputError(f"{readme}: the lines {START} and {END} have to mark the place")
    with atomic_file(readme) as partial:
        partial.write_text(
            f"{before}{START}\n{results_table(reports)}\n{END}{after}", encoding="utf-8"
        )


def results_table(reports: Sequence[Report]) -> str:
    """A Markdown table, a row per seed and stage, and the machine it was measured on."""
    titles = [
        METRICS[name].label + (", sampled" if mode == "sampled" else "") for name, mode in _COLUMNS
    ]
    lines = [
        f"| Seed | Stage | {' | '.join(titles)} |",
        f"| --- | --- |{' --- |' * len(titles)}",
    ]
    for report in reports:
        for stage in stages(report):
            found = (measure(report, stage, name, mode) for name, mode in _COLUMNS)
            cells = " | ".join("–" if m is None else m.format() for m in found)
            lines.append(f"| {report['seed']} | {label(stage)} | {cells} |")
    return "\n".join([*lines, "", _provenance(reports)])


def _provenance(reports: Sequence[Report]) -> str:
    machines = {
        f"{r['machine']['cpus']} CPUs, {r['machine']['memory_gib']} GiB ({r['machine']['system']})"
        for r in reports
    }
    minutes = ", ".join(f"{sum(report['seconds'].values()) / 60:.1f}" for report in reports)
    return (
        f"Values with 95% intervals; greedy decoding unless a column says sampled (temperature 1). "
        f"{len(reports)} seed{'s' if len(reports) > 1 else ''} on {'; '.join(sorted(machines))}; "
        f"{minutes} minutes from the first step to the last."
    )
