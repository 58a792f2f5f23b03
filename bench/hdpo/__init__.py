"""What HDPO does and what it costs, beside its rivals: the study behind docs/hdpo.md.

`python -m bench hdpo` trains every arm that has not been trained yet and writes the tables and
plots; `python -m bench.hdpo --help` runs parts of it, or more of it.
"""

from __future__ import annotations

from typing import Any


def measure() -> dict[str, float]:
    """Accuracy, redundant and necessary call rates (sampled) per arm, and what all arms cost."""
    from bench.hdpo.report import write_report
    from bench.hdpo.scale import Scale
    from bench.hdpo.study import run_study

    results = run_study(Scale())
    write_report(results)
    return headline(results)


def headline(results: dict[str, Any]) -> dict[str, float]:
    """The figures of `bench/results/hdpo.json`, from what `bench/results/hdpo_arms.json` holds."""
    arms = results["arms"]
    spent = sum(arm["cpu_seconds"] * len(arm["seeds"]) for arm in arms)
    found = {"core minutes of all arms": round(spent / 60, 1)}
    for arm in arms:
        for metric in ("accuracy", "redundant_call_rate", "necessary_call_rate"):
            found[f"{arm['regime']}: {arm['name']}, {metric}"] = arm["sampled"][metric]["value"]
    return found
