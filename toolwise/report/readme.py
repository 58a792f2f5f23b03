"""The results table of a README, written from reports and never by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from toolwise.evaluation.labels import METRICS
from toolwise.markdown import fill, table
from toolwise.report.measures import Measure, Report, label, measure, stages

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
    """A Markdown table of the stages, and the machine it was measured on.

    Of several seeds it has each stage's mean with the lowest and the highest of them; each seed's
    own values and intervals are in a second table, folded up.
    """
    columns = [
        METRICS[name].label + (", sampled" if mode == "sampled" else "") for name, mode in _COLUMNS
    ]
    measured = [
        [str(report["seed"]), label(stage), *_measures(report, stage)]
        for report in reports
        for stage in stages(report)
    ]
    each = table(["Seed", "Stage", *columns], measured)
    if len(reports) == 1:
        return f"{each}\n\nValues with 95% intervals. {_provenance(reports)}"
    every_stage = dict.fromkeys(stage for report in reports for stage in stages(report))
    together = [[label(stage), *_across(reports, stage)] for stage in every_stage]
    return (
        f"{table(['Stage', *columns], together)}\n\n"
        f"Mean of {len(reports)} seeds [lowest, highest]. {_provenance(reports)}\n\n"
        f"<details><summary>Each seed, with 95% intervals</summary>\n\n{each}\n\n</details>"
    )


def _measures(report: Report, stage: str) -> Iterator[str]:
    for name, mode in _COLUMNS:
        found = measure(report, stage, name, mode)
        yield "–" if found is None else found.format()


def _across(reports: Sequence[Report], stage: str) -> Iterator[str]:
    for name, mode in _COLUMNS:
        found = [measure(report, stage, name, mode) for report in reports]
        values = [one.value for one in found if one is not None]
        if values:
            yield Measure(mean(values), len(values), min(values), max(values)).format()
        else:
            yield "–"


def _provenance(reports: Sequence[Report]) -> str:
    machines = {
        f"{r['machine']['cpus']} CPUs, {r['machine']['memory_gib']} GiB ({r['machine']['system']})"
        for r in reports
    }
    minutes = ", ".join(f"{sum(report['seconds'].values()) / 60:.1f}" for report in reports)
    return (
        "Greedy decoding unless a column says sampled (temperature 1). "
        f"On {'; '.join(sorted(machines))}; {minutes} minutes from the first step to the last."
    )
