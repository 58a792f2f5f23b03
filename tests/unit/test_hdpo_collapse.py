"""The estimate of how often a needed call is made, and the alarm when it stops being made."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from toolwise.statistics import Interval, wilson_interval
from toolwise.training.hdpo import collapse
from toolwise.training.hdpo.collapse import (
    CONFIDENCE,
    MISSED,
    Collapse,
    CollapseAlarm,
    Window,
    call_need,
    find_collapse,
)

NAN = float("nan")
P = 40  # prompts of a step


def need(
    calls: list[int],
    correct: list[int],
    accuracy: list[float] | None = None,
    offered: list[bool] | None = None,
) -> tuple[float, float]:
    found = call_need(
        torch.tensor(accuracy or [float(right) for right in correct]),
        torch.tensor(correct),
        torch.tensor(calls),
        4,
        torch.tensor(offered) if offered else None,
    )
    return found.missed_call_rate.item(), found.necessary_call_rate.item()


class TestTheEstimate:
    def test_each_rollout_counts_by_how_often_the_others_went_wrong_without_a_call(self) -> None:
        # Without a call: the second, wrong, and the third, right. Shares of wrong ones among the
        # others without a call: 1/2, 0/1, 1/1, 1/2. Calls: (1/2 + 1/2)/(1/2 + 0 + 1 + 1/2) = 1/2.
        assert need([1, 0, 0, 2], [1, 0, 1, 1]) == pytest.approx((0.25, 0.5))

    def test_a_group_that_shows_no_need_has_no_say(self) -> None:
        # The second group is right without calls and wrong with one.
        found = need([1, 0, 0, 2, 0, 0, 1, 0], [1, 0, 1, 1, 1, 1, 0, 1])
        assert found == pytest.approx((0.125, 0.5))

    def test_where_nothing_shows_a_need_there_is_no_estimate(self) -> None:
        missed, necessary = need([1, 1, 1, 1], [1, 1, 0, 1])
        assert missed == 0.0
        assert necessary != necessary

    def test_a_rollout_that_was_not_judged_is_neither_counted_nor_evidence(self) -> None:
        # Left are the third, right without a call, and two calls: no need, no call missed.
        missed, necessary = need([1, 0, 0, 2], [1, 0, 1, 1], accuracy=[1.0, NAN, 1.0, 1.0])
        assert missed == 0.0
        assert necessary != necessary

    def test_a_rollout_that_was_offered_no_tools_is_evidence_and_not_counted(self) -> None:
        # The last, wrong, had no choice. Of the others without a call one of three went wrong for
        # the first rollout, one of two for the second and the third.
        found = need([1, 0, 0, 0], [1, 1, 1, 0], offered=[True, True, True, False])
        assert found == pytest.approx((0.0, (1 / 3) / (1 / 3 + 1 / 2 + 1 / 2)))

    def test_it_is_not_biased_by_which_groups_show_a_need(self) -> None:
        # Every prompt is called for in 90 of 100 rollouts, and right without a call in 20 of 100.
        generator = torch.Generator().manual_seed(0)
        called = torch.rand(40_000, 4, generator=generator) < 0.9
        right = called | (torch.rand(40_000, 4, generator=generator) < 0.2)
        found = call_need(right.float().flatten(), right.flatten(), called.flatten().int(), 4)
        assert found.necessary_call_rate.item() == pytest.approx(0.9, abs=0.01)
        # Counting calls in the groups that show a need would say 0.7.
        shown = (~right).any(dim=1)
        assert called[shown].float().mean().item() == pytest.approx(0.7, abs=0.02)


def log(*rates: tuple[float, float]) -> list[dict[str, float]]:
    steps = enumerate(rates, start=1)
    return [{"step": s, "accuracy": accuracy, MISSED: missed} for s, (accuracy, missed) in steps]


def drawn(rng: random.Random, accuracy: float, missed: float) -> tuple[float, float]:
    """A step's rates as its prompts come out, all rollouts of one alike: the noisiest case."""
    outcomes = rng.choices(
        ["right", "missed", "wrong"], [accuracy, missed, 1 - accuracy - missed], k=P
    )
    return outcomes.count("right") / P, outcomes.count("missed") / P


def by_hand(rates: list[tuple[float, float]]) -> Collapse | None:
    """The clearest collapse in windows of 5 steps, or of 20: every earlier one is looked at."""

    def window(end: int, size: int) -> Window:
        part = rates[max(0, end - size) : end]
        accuracy, missed = (round(sum(column) / len(part), 9) for column in zip(*part, strict=True))
        count = len(part) * P
        intervals = (wilson_interval(m * count, count, CONFIDENCE) for m in (accuracy, missed))
        return Window(end, accuracy, missed, *intervals)

    for size in (5, 20):
        after = window(len(rates), size)
        before = [
            earlier
            for earlier in (window(end, size) for end in range(1, len(rates) - size + 1))
            if earlier.accuracy_interval.low > after.accuracy_interval.high
            and earlier.missed_interval.high < after.missed_interval.low
        ]
        if before:
            best = max(before, key=lambda w: (w.accuracy_interval.low, w.last_step))
            return Collapse(best, after)
    return None


class TestTheAlarm:
    def test_it_is_raised_when_answers_go_wrong_for_want_of_calls(self) -> None:
        found = find_collapse(log(*[(0.95, 0.02)] * 10, *[(0.55, 0.40)] * 5), P)
        assert found is not None
        assert str(found) == (
            "tool use is collapsing: since step 10 accuracy fell from 0.95 to 0.55, and wrong "
            "answers without a call rose from 0.02 to 0.40 of all rollouts"
        )

    @pytest.mark.parametrize(
        ("after", "why"),
        [
            ((0.95, 0.02), "nothing happened"),
            ((0.55, 0.02), "answers go wrong in spite of calls"),
            ((0.95, 0.05), "calls are made where they are needed"),
            ((0.90, 0.07), "chance explains it"),
        ],
    )
    def test_it_is_not_raised_when(self, after: tuple[float, float], why: str) -> None:
        assert find_collapse(log(*[(0.95, 0.02)] * 10, *[after] * 5), P) is None, why

    def test_it_needs_a_whole_window_and_steps_before_it(self) -> None:
        # 200 groups of 40 are 5 steps.
        steps = log(*[(0.95, 0.02)] * 5, *[(0.1, 0.9)] * 5)
        assert find_collapse(steps, P) is not None
        assert find_collapse(steps[:6], P) is None
        # 200 groups of 20 are 10.
        assert find_collapse(steps, 20) is None

    def test_it_sees_a_collapse_that_is_over_in_a_few_steps(self) -> None:
        steps = log((0.92, 0.02), (0.89, 0.03), (0.7, 0.2), *[(0.5, 0.5)] * 5)
        assert find_collapse(steps[:6], P) is None
        found = find_collapse(steps, P)
        assert found is not None
        assert found.before.last_step == 2

    def test_it_sees_a_collapse_that_takes_a_long_time(self) -> None:
        slow = [(0.95 - step * 0.002, 0.02 + step * 0.002) for step in range(200)]
        assert find_collapse(log(*slow[:20]), P) is None
        assert find_collapse(log(*slow), P) is not None

    def test_a_slight_collapse_shows_once_there_is_more_to_go_by(self) -> None:
        # Every call that was needed is gone, on the tenth of the prompts that need one.
        steps = log(*[(0.95, 0.0)] * 20, *[(0.85, 0.1)] * 20)
        assert find_collapse(steps[:30], P) is None
        assert find_collapse(steps, P) is not None

    def test_a_collapse_that_is_over_is_no_collapse(self) -> None:
        steps = [*[(0.95, 0.02)] * 10, *[(0.5, 0.4)] * 5, *[(0.94, 0.03)] * 5]
        assert find_collapse(log(*steps), P) is None

    def test_steps_without_rollouts_of_their_own_are_passed_over(self) -> None:
        steps = log(*[(0.95, 0.02)] * 5, *[(0.55, 0.40)] * 5)
        mixed = [entry for step in steps for entry in (step, {"step": 0, "loss": 0.1})]
        assert find_collapse(mixed, P) == find_collapse(steps, P)

    def test_what_a_step_costs_does_not_grow_with_the_log(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Noise around rates that creep apart, so that no window beats all others.
        rng, computed = random.Random(0), 0
        interval = collapse.wilson_interval

        def counted(*given: Any) -> Interval:
            nonlocal computed
            computed += 1
            return interval(*given)

        monkeypatch.setattr(collapse, "wilson_interval", counted)
        alarm = CollapseAlarm(groups=4)
        steps = [(0.5 + step / 1e5 + rng.random() / 10, step / 1e5) for step in range(20_000)]
        for entry in log(*steps):
            before = computed
            alarm.add(entry)
            # Two windows of either size, each with two intervals.
            assert computed - before <= 8

    def test_it_finds_what_comparing_with_every_earlier_window_finds(self) -> None:
        rng = random.Random(0)
        for _ in range(30):
            accuracy, rates = 0.9, []
            for _ in range(60):
                accuracy = min(1.0, max(0.1, accuracy + rng.uniform(-0.1, 0.06)))
                rates.append((accuracy, (1 - accuracy) * rng.random()))
            alarm = CollapseAlarm(P)
            found = [alarm.add(entry) for entry in log(*rates)]
            assert found == [by_hand(rates[:end]) for end in range(1, 61)]
            assert any(found)

    def test_steps_nobody_judged_are_passed_over(self) -> None:
        steps = log(*[(0.95, 0.02)] * 5, (NAN, NAN), *[(0.55, 0.40)] * 5)
        assert find_collapse(steps, P) is not None

    def test_healthy_runs_do_not_raise_it(self) -> None:
        # 20 runs of 150 steps, looked at after each: nothing changes, or calls fall to what is
        # needed and accuracy rises a little.
        rng = random.Random(0)
        for run in range(20):
            goal = 0.9 if run % 2 else 0.94
            rates = [
                drawn(rng, 0.9 + (goal - 0.9) * step / 150, 0.05 * (0.9 if run % 2 else 0.6))
                for step in range(150)
            ]
            alarms = [s for s in range(1, 151) if find_collapse(log(*rates[:s]), P)]
            assert alarms == [], run
