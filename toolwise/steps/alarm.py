"""A training's curve in MLflow, and a tag where its tool use has collapsed."""

from __future__ import annotations

from collections.abc import Mapping

from toolwise.tracking import Run


def log_training(run: Run, metrics: Mapping[str, float], step: int) -> None:
    """Log a training step; while the alarm is on, the run is tagged with how bad it is."""
    from toolwise.training.hdpo.collapse import ALARM, MISSED, TAG

    run.log(metrics, step)
    if metrics.get(ALARM):
        run.tag(
            TAG,
            f"step {step}: accuracy {metrics['accuracy']:.2f}, wrong answers without a call "
            f"{metrics[MISSED]:.2f} of all rollouts",
        )
