"""An alarm for the way frugality goes wrong: calls stop where they were needed, answers go wrong.

An evaluation knows which items need a tool, from answers given without one. A training step only
has its rollouts, but a rollout that made no call and is wrong is such an answer, and tells two
things of its prompt: that it needs more than the model has by itself, and that the call was missed.

B = P·G: rollouts of a step, of which rows p·G … p·G+G−1 share a prompt.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from toolwise.statistics import Interval, wilson_interval
from toolwise.training.alarm import ALARM as ALARM
from toolwise.training.alarm import MISSED, TAG, tag

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


class CollapseAlarm:
    """Says after each logged step whether tool use has collapsed; a step costs O(log n).

    It has, if in some earlier window accuracy was higher and missed calls were fewer than in the
    last one of its size, each by so much that their 99.9% intervals lie apart. An earlier window
    may be as short as the start of the run, for a collapse can be over in a few steps. Intervals
    are Wilson's over the window's groups (a group's rollouts are alike, so it counts once).

    Args:
        groups: P, prompts of each logged step.
        log: steps logged so far, in order, as in `TrainerState.log_history`; those without
            rollouts of their own are passed over.
    """

    def __init__(self, groups: int, log: Sequence[Mapping[str, Any]] = ()) -> None:
        self.groups = groups
        self.log = log
        self._sums = [(0.0, 0.0)]  # of accuracy and of missed calls, over the first steps
        self._steps: list[int] = []
        sizes = {max(STEPS, math.ceil(length / groups)): None for length in GROUPS}
        self._best: dict[int, list[Window]] = {size: [] for size in sizes}
        for entry in log:
            self.add(entry)

    def add(self, entry: Mapping[str, Any]) -> Collapse | None:
        """The clearest collapse as of this step, in the shortest windows that show one."""
        if not _has_rates(entry):
            return None
        accuracy, missed = self._sums[-1]
        self._sums.append((accuracy + entry["accuracy"], missed + entry[MISSED]))
        self._steps.append(int(entry.get("step", 0)))
        found = (self._collapse(size, best) for size, best in self._best.items())
        return next(filter(None, list(found)), None)

    def _collapse(self, size: int, best: list[Window]) -> Collapse | None:
        """Between the last `size` steps and a window before them, kept in `best`.

        `best` holds the windows that no other beats in both rates, so both rise along it.
        """
        end = len(self._steps) - size
        if end < 1:
            return None
        _keep(best, self._window(end, size))
        after = self._window(len(self._steps), size)
        fewer = bisect_left(best, after.missed_interval.low, key=_missed_high)
        if not fewer or best[fewer - 1].accuracy_interval.low <= after.accuracy_interval.high:
            return None
        return Collapse(best[fewer - 1], after)

    def _window(self, end: int, size: int) -> Window:
        start = max(0, end - size)
        count = (end - start) * self.groups
        accuracy, missed = (
            round(max(0.0, upto - before) / (end - start), 9)  # or equal windows would differ
            for upto, before in zip(self._sums[end], self._sums[start], strict=True)
        )
        return Window(
            self._steps[end - 1],
            accuracy,
            missed,
            wilson_interval(accuracy * count, count, CONFIDENCE),
            wilson_interval(missed * count, count, CONFIDENCE),
        )


def find_collapse(log: Sequence[Mapping[str, Any]], groups: int) -> Collapse | None:
    """Whether tool use has collapsed by the end of a training log; see `CollapseAlarm`."""
    alarm = CollapseAlarm(groups)
    found = None
    for entry in filter(_has_rates, log):
        found = alarm.add(entry)
    return found


def tag_active_run(step: int, metrics: Mapping[str, float]) -> None:
    """Tag the MLflow run that the trainer's own callback logs to."""
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.set_tag(TAG, tag(step, metrics))


def _keep(best: list[Window], window: Window) -> None:
    """Insert a window unless a kept one beats it, and drop those it beats."""
    accuracy, missed = _accuracy_low(window), _missed_high(window)
    above = bisect_right(best, accuracy, key=_accuracy_low)
    if above < len(best) and _missed_high(best[above]) <= missed:
        return
    beaten = bisect_left(best, missed, key=_missed_high)
    best[beaten:above] = [window]


def _accuracy_low(window: Window) -> float:
    return window.accuracy_interval.low


def _missed_high(window: Window) -> float:
    return window.missed_interval.high


def _has_rates(entry: Mapping[str, Any]) -> bool:
    rates = (entry.get(name) for name in ("accuracy", MISSED))
    return all(isinstance(rate, int | float) and math.isfinite(rate) for rate in rates)
