"""Gather what the steps of a run left behind into report.json and the page beside it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import toolwise
from toolwise.errors import InputError
from toolwise.evaluation.labels import MODE_LABELS
from toolwise.evaluation.metrics import read_scores
from toolwise.promotion.gate import Decision
from toolwise.report.changes import paired_changes
from toolwise.report.measures import Report
from toolwise.report.page import render_page
from toolwise.report.plots import TRAINING_PANELS
from toolwise.report.samples import read_samples
from toolwise.storage import atomic_file

_PACKAGES = ("torch", "transformers", "trl", "kfp", "mlflow", "kserve")


def build_report(
    stages: Mapping[str, Path],
    decision: Path | None,
    training_log: Path | None,
    curation_reports: Sequence[Path],
    seconds: Mapping[str, float],
    endpoint: Path | None,
    seed: int,
    out_dir: Path,
    profile: str | None = None,
) -> Path:
    """Write `report.json` and `report.html` to `out_dir`.

    Args:
        stages: evaluation directory of each checkpoint (`base`, `sft`, `hdpo`, …), in the order
            they were trained.
        decision: the gate's decision file.
        training_log: JSON lines, one per HDPO step.
        curation_reports: what each curation step counted.
        seconds: wall time per step.
        endpoint: the promoted endpoint's answers; None where nothing was deployed.
        seed: the run's.
        out_dir: where both files go.
        profile: the run's, where it has a name.

    Returns:
        The path of `report.json`.

    Raises:
        InputError: a file that was named is missing or cannot be read.
    """
    report: Report = {
        "profile": profile,
        "seed": seed,
        "seconds": dict(seconds),
        "stages": {name: _stage(directory) for name, directory in stages.items()},
        "changes": _changes(stages),
        "gate": Decision.read(decision).model_dump(mode="json") if decision else None,
        "endpoint": _read_json(endpoint) if endpoint else None,
        "training": _training(training_log) if training_log else None,
        "curation": [_read_json(path) for path in curation_reports],
        "versions": _versions(),
        "machine": _machine(),
    }
    samples = {name: read_samples(directory) for name, directory in stages.items()}
    page = render_page(report, samples)
    with atomic_file(out_dir / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    final = out_dir / "report.json"
    with atomic_file(final) as partial:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    return final


def _stage(directory: Path) -> dict[str, Any]:
    metrics = _read_json(directory / "metrics.json")
    return {key: metrics[key] for key in ("items", "solvable", *MODE_LABELS)}


def _changes(stages: Mapping[str, Path]) -> dict[str, Any] | None:
    """The last stage against the one before it; None where there are not two."""
    if len(stages) < 2:
        return None
    before, after = list(stages)[-2:]
    scores = [read_scores(stages[name] / "scores.jsonl") for name in (after, before)]
    return {"before": before, "after": after, **paired_changes(*scores)}


def _training(log: Path) -> dict[str, list[float | None]]:
    """The drawn columns of the log, with None at the steps that did not log a finite value."""
    rows = _read_lines(log)
    names = ["step", *(name for _, curves in TRAINING_PANELS for name, _ in curves)]
    columns = {name: [_finite(row.get(name)) for row in rows] for name in names}
    return {name: column for name, column in columns.items() if any(v is not None for v in column)}


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read for the report: {error}") from None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read for the report: {error}") from None


def _versions() -> dict[str, str | None]:
    # Imports MLflow, which printing a report can do without.
    from toolwise.tracking import git_commit

    return {
        "toolwise": toolwise.__version__,
        "commit": git_commit() or None,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
    }
