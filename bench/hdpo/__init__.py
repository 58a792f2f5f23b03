"""What HDPO does and what it costs, beside its rivals: the study behind docs/hdpo.md.

`python -m bench hdpo` trains every arm that has not been trained yet and writes the tables and
plots; `python -m bench.hdpo --help` runs parts of it, or more of it.
"""

from __future__ import annotations


def measure() -> dict[str, float]:
    """Accuracy, redundant and necessary call rates (sampled) and rollouts needed, per arm."""
    from bench.hdpo.report import write_report
    from bench.hdpo.scale import Scale
    from bench.hdpo.study import run_study

    results = run_study(Scale())
    write_report(results)
    figures: dict[str, float] = {}
    for arm in results["arms"]:
        name = f"{arm['regime']}: {arm['name']}"
        for metric in ("accuracy", "redundant_call_rate", "necessary_call_rate"):
            figures[f"{name}, {metric}"] = arm["sampled"][metric]["value"]
    return figures
