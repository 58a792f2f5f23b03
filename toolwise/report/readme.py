"""The results table of a README, written from reports and never by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from toolwise.evaluation.labels import METRICS
from toolwise.markdown import fill, table
from toolwise.report.measures import Report, label, measure, stages

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
    fill(readme, {"results": results_table(reports)})


def results_table(reports: Sequence[Report]) -> str:
    """A Markdown table, a row per seed and stage, and the machine it was measured on."""
    titles = [
        METRICS[name].label + (", sampled" if mode == "sampled" else "") for name, mode in _COLUMNS
    ]
    rows = [
        [str(report["seed"]), label(stage), *_measures(report, stage)]
        for report in reports
        for stage in stages(report)
    ]
    return f"{table(['Seed', 'Stage', *titles], rows)}\n\n{_provenance(reports)}"


def _measures(report: Report, stage: str) -> Iterator[str]:
    for name, mode in _COLUMNS:
        found = measure(report, stage, name, mode)
        yield "–" if found is None else found.format()


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
