"""An alarm for the way frugality goes wrong: calls stop where they were needed, answers go wrong.

An evaluation knows which items need a tool, from answers given without one. A training step only
has its rollouts, but a rollout that made no call and is wrong is such an answer, and tells two
things of its prompt: that it needs more than the model has by itself, and that the call was missed.

B = P·G: rollouts of a step, of which rows p·G … p·G+G−1 share a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from toolwise.statistics import Interval, wilson_interval

ALARM = "collapse_alarm"
"""Metric of a step: 1 while calls and accuracy have collapsed, 0 otherwise."""

MISSED = "missed_call_rate"
"""Metric of a step: share of rollouts that made no call and are wrong."""

TAG = "toolwise.collapse"
"""Tag of an MLflow run in which the alarm was raised, with what happened."""

STEPS = 5
GROUPS = (200, 800)
"""Windows are at least so many logged steps, and so many groups, long: a sudden collapse shows in
short ones, a slight one only in long ones."""

CONFIDENCE = 0.999
"""Of a window's intervals: a run compares thousands of windows."""


class CallNeed(NamedTuple):
    """What a step's rollouts say about calls that were needed (scalars).

    Args:
        missed_call_rate: share of the judged rollouts that made no call and are wrong.
        necessary_call_rate: estimate of the share of rollouts with a call where one is needed;
            NaN where no rollout shows a need.
    """

    missed_call_rate: Tensor
    necessary_call_rate: Tensor


def call_need(
    accuracy: Tensor,
    correct: Tensor,
    tool_calls: Tensor,
    num_generations: int,
    offered: Tensor | None = None,
) -> CallNeed:
    """Estimate from rollouts how often a needed call is made.

    A group's rollouts without a call estimate how often the prompt goes wrong without one. Each
    rollout counts by that share among the *others* of its group, as how much its prompt needs a
    call is then judged independently of what it did itself: the weighted share of rollouts with a
    call is the necessary call rate.

    Args:
        accuracy: [B] accuracy rewards, NaN where not judged.
        correct: [B] whether the answer is right.
        tool_calls: [B] T.
        num_generations: G.
        offered: [B] whether the rollout had a choice; those without tools are evidence of what
            goes wrong without a call, and are not themselves counted.
    """
    judged_PG = ~accuracy.view(-1, num_generations).isnan()
    chose_PG = judged_PG & (offered.view(-1, num_generations) if offered is not None else True)
    called_PG = tool_calls.view(-1, num_generations) > 0
    without_PG = judged_PG & ~called_PG
    wrong_PG = without_PG & ~correct.view(-1, num_generations).bool()
    other_wrong_PG = wrong_PG.sum(dim=1, keepdim=True) - wrong_PG.int()
    other_without_PG = without_PG.sum(dim=1, keepdim=True) - without_PG.int()
    need_PG = other_wrong_PG / other_without_PG.clamp(min=1) * chose_PG
    return CallNeed(
        (wrong_PG & chose_PG).sum() / chose_PG.sum(),
        (need_PG * called_PG).sum() / need_PG.sum(),
    )


class Window(NamedTuple):
    """Means over consecutive logged steps, each with its interval."""

    last_step: int
    accuracy: float
    missed: float
    accuracy_interval: Interval
    missed_interval: Interval


class Collapse(NamedTuple):
    """Accuracy fell and missed calls rose between two windows of a run, beyond chance."""

    before: Window
    after: Window

    def __str__(self) -> str:
        before, after = self
        return (
            f"tool use is collapsing: since step {before.last_step} accuracy fell from "
            f"{before.accuracy:.2f} to {after.accuracy:.2f}, and wrong answers without a call rose "
            f"from {before.missed:.2f} to {after.missed:.2f} of all rollouts"
        )


def find_collapse(log: Sequence[Mapping[str, Any]], groups: int) -> Collapse | None:
    """Whether tool use has collapsed by the end of a training log.

    It has, if in some earlier window accuracy was higher and missed calls were fewer than in the
    last one of its size, each by so much that their 99.9% intervals lie apart. An earlier window
    may be as short as the start of the run, for a collapse can be over in a few steps. Intervals
    are Wilson's over the window's groups (a group's rollouts are alike, so it counts once).

    Args:
        log: logged steps in order, as in `TrainerState.log_history`; those without rollouts of
            their own are passed over.
        groups: P, prompts of each.
    """
    rated = [entry for entry in log if _has_rates(entry)]
    sizes = (max(STEPS, math.ceil(length / groups)) for length in GROUPS)
    return next(filter(None, (_collapse(rated, groups, size) for size in sizes)), None)


def tag_active_run(collapse: Collapse) -> None:
    """Tag the MLflow run that the trainer's own callback logs to."""
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.set_tag(TAG, str(collapse))


def _collapse(rated: Sequence[Mapping[str, Any]], groups: int, size: int) -> Collapse | None:
    """The clearest collapse between the last `size` steps and some before."""
    earlier = rated[:-size]
    if not earlier:
        return None
    after = _window(rated[-size:], groups)
    ends = range(1, len(earlier) + 1)
    windows = (_window(earlier[max(0, end - size) : end], groups) for end in ends)
    before = [
        window
        for window in windows
        if window.accuracy_interval.low > after.accuracy_interval.high
        and window.missed_interval.high < after.missed_interval.low
    ]
    if not before:
        return None
    best = max(before, key=lambda window: (window.accuracy_interval.low, window.last_step))
    return Collapse(best, after)


def _window(steps: Sequence[Mapping[str, Any]], groups: int) -> Window:
    count = len(steps) * groups
    accuracy = sum(step["accuracy"] for step in steps) / len(steps)
    missed = sum(step[MISSED] for step in steps) / len(steps)
    return Window(
        int(steps[-1].get("step", 0)),
        accuracy,
        missed,
        wilson_interval(accuracy * count, count, CONFIDENCE),
        wilson_interval(missed * count, count, CONFIDENCE),
    )


def _has_rates(entry: Mapping[str, Any]) -> bool:
    return all(isinstance(entry.get(name), int | float) for name in ("accuracy", MISSED))
