"""Reading report.json: its stages, and one measure with its interval."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolwise.errors import InputError
from toolwise.evaluation.labels import MODE_LABELS
from toolwise.evaluation.metrics import OVERALL

Report = dict[str, Any]

STAGE_LABELS = {"base": "Base", "sft": "SFT", "hdpo": "HDPO"}


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric: its value, how many observations it rests on, and its 95% interval.

    The interval is None where one observation is all there is.
    """

    value: float
    count: int
    low: float | None
    high: float | None

    def format(self, digits: int = 2) -> str:
        """`0.01 [0.00, 0.02]`."""
        value = f"{self.value:.{digits}f}"
        if self.low is None or self.high is None:
            return value
        return f"{value} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @property
    def below(self) -> float:
        """Length of the interval below the value; 0 without one."""
        return 0.0 if self.low is None else max(0.0, self.value - self.low)

    @property
    def above(self) -> float:
        """Length of the interval above the value; 0 without one."""
        return 0.0 if self.high is None else max(0.0, self.high - self.value)


def read_report(path: Path) -> Report:
    """The report at `path`.

    Raises:
        InputError: it is missing, is not JSON, or has no `stages`.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no report there; `make demo` writes one") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a report: {error}") from None
    if not isinstance(report, dict) or not isinstance(report.get("stages"), dict):
        raise InputError(f"{path}: not a report: it has no `stages`")
    return report


def measure(
    report: Report, stage: str, metric: str, mode: str = "greedy", ability: str = OVERALL
) -> Measure | None:
    """One metric of the report; None where the stage was not measured or the metric is empty."""
    entry = report["stages"].get(stage, {}).get(mode, {}).get(ability, {}).get(metric)
    if entry is None or entry["value"] is None:
        return None
    return Measure(entry["value"], entry["count"], entry["low"], entry["high"])


def stages(report: Report) -> list[str]:
    """The stages measured, in the order they were trained."""
    return list(report["stages"])


def abilities(report: Report) -> list[str]:
    """`overall`, then the abilities measured in any stage."""
    found = {
        ability
        for stage in report["stages"].values()
        for mode in MODE_LABELS
        for ability in stage.get(mode, {})
    }
    return [OVERALL, *sorted(found - {OVERALL})]


def label(stage: str) -> str:
    """The name a person reads for a stage."""
    return STAGE_LABELS.get(stage, stage)
