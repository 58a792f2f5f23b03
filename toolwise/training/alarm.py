"""How a training says that its tool use has collapsed; whoever follows it has no torch to ask."""

from __future__ import annotations

from collections.abc import Mapping

ALARM = "collapse_alarm"
"""Metric of a step: 1 while calls and accuracy have collapsed, 0 otherwise."""

MISSED = "missed_call_rate"
"""Metric of a step: share of rollouts that made no call and are wrong."""

TAG = "toolwise.collapse"
"""Tag of an MLflow run in which the alarm was raised, with what happened."""


def tag(step: int, metrics: Mapping[str, float]) -> str:
    """What the tag `TAG` of a run says: the rates at the step that raised the alarm."""
    return (
        f"step {step}: accuracy {metrics['accuracy']:.2f}, wrong answers without a call "
        f"{metrics[MISSED]:.2f} of all rollouts"
    )
