"""A training's curve in MLflow, and a tag where its tool use has collapsed."""

from __future__ import annotations

from collections.abc import Mapping

from toolwise.tracking import Run
from toolwise.training.alarm import ALARM, TAG, tag


class TrainingLog:
    """Logs a training's steps to a run, and tags the run at the step that raises the alarm."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._alarmed = False

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step."""
        self._run.log(metrics, step)
        alarmed = bool(metrics.get(ALARM))
        if alarmed and not self._alarmed:
            self._run.tag(TAG, tag(step, metrics))
        self._alarmed = alarmed
