"""HDPO's rewards and advantages against values worked out by hand, and their properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolwise.training.hdpo import accuracy_rewards, efficiency_rewards, hdpo_advantages
from toolwise.training.hdpo.rewards import FAILED, judge_failed

NAN = float("nan")


def near(*values: float) -> object:
    return pytest.approx(list(values), abs=2e-5)


def rewards(correct: list[int], calls: list[int]) -> tuple[torch.Tensor, ...]:
    right = torch.tensor(correct)
    return (
        accuracy_rewards(right, torch.ones(len(correct))),
        efficiency_rewards(right, torch.tensor(calls)),
        right,
    )


def test_accuracy_reward_is_nine_parts_answer_and_one_part_format() -> None:
    answer, form = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    assert accuracy_rewards(answer, form).tolist() == near(1.0, 0.9, 0.1, 0.0)


def test_efficiency_reward_is_paid_only_for_right_answers() -> None:
    # 1/(0+1), 1/(1+1), 1/(3+1), and nothing for a wrong answer without calls.
    found = efficiency_rewards(torch.tensor([1, 1, 1, 0]), torch.tensor([0, 1, 3, 0]))
    assert found.tolist() == near(1.0, 0.5, 0.25, 0.0)


def test_group_with_all_right_learns_efficiency_and_no_accuracy() -> None:
    # Efficiency 1, 1/2, 1/2, 1: mean 3/4, deviations ±1/4,
    # unbiased variance 4·(1/16)/3 = 1/12, std 0.288675; 0.25/0.288675 = 0.866025.
    found = hdpo_advantages(*rewards([1, 1, 1, 1], [0, 1, 1, 0]), 4)
    assert found.accuracy.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert found.efficiency.tolist() == near(0.866025, -0.866025, -0.866025, 0.866025)


def test_group_with_none_right_learns_nothing() -> None:
    found = hdpo_advantages(*rewards([0, 0, 0, 0], [0, 1, 2, 0]), 4)
    assert found.accuracy.tolist() == [0.0] * 4
    assert found.efficiency.tolist() == [0.0] * 4


def test_group_with_one_right_learns_accuracy_and_no_efficiency() -> None:
    # Accuracy 1, 0.1, 0.1, 0.1: mean 0.325, deviations 0.675 and −0.225,
    # variance (0.455625 + 3·0.050625)/3 = 0.2025, std 0.45; 0.675/0.45 = 1.5, −0.225/0.45 = −0.5.
    # Q = {the one right rollout}: |Q| < 2.
    found = hdpo_advantages(*rewards([1, 0, 0, 0], [1, 0, 0, 0]), 4)
    assert found.accuracy.tolist() == near(1.5, -0.5, -0.5, -0.5)
    assert found.efficiency.tolist() == [0.0] * 4


def test_wrong_rollouts_do_not_enter_the_efficiency_mean() -> None:
    # Q = {0 calls, 1 call}: efficiency 1 and 1/2, mean 3/4, std √(2·(1/16)/1) = 0.353553;
    # ±0.25/0.353553 = ±0.707107. The wrong rollout that made no call gets nothing.
    found = hdpo_advantages(*rewards([1, 1, 0, 0], [0, 1, 0, 3]), 4)
    assert found.efficiency.tolist() == near(0.707107, -0.707107, 0.0, 0.0)


def test_groups_do_not_mix() -> None:
    found = hdpo_advantages(*rewards([1, 1, 1, 0], [0, 1, 0, 0]), 2)
    # First group ±0.707107 as above; in the second only one is right.
    # Second group's accuracy 1 and 0.1: mean 0.55, std √(2·0.2025) = 0.636396, 0.45/0.636396.
    assert found.efficiency.tolist() == near(0.707107, -0.707107, 0.0, 0.0)
    assert found.accuracy.tolist() == near(0.0, 0.0, 0.707107, -0.707107)


def test_a_rollout_whose_judge_failed_is_in_neither_channel() -> None:
    # Without the NaN row accuracy is 1, 0.1, 0.1: mean 0.4, deviations 0.6, −0.3, −0.3,
    # variance (0.36 + 0.18)/2 = 0.27, std 0.519615; 1.154701 and −0.577350.
    accuracy = torch.tensor([1.0, 0.1, NAN, 0.1])
    efficiency = torch.tensor([0.5, 0.0, 1.0, 0.0])
    found = hdpo_advantages(accuracy, efficiency, torch.tensor([1, 0, 1, 0]), 4)
    assert found.accuracy.tolist() == near(1.154701, -0.57735, 0.0, -0.57735)
    # Q would hold two with the NaN row; without it |Q| = 1.
    assert found.efficiency.tolist() == [0.0] * 4


def test_eps_is_added_to_the_std() -> None:
    # Accuracy 1 and 0.1: deviation 0.45, std 0.636396; with eps = 1: 0.45/1.636396 = 0.274995.
    found = hdpo_advantages(*rewards([1, 0], [0, 0]), 2, eps=1.0)
    assert found.accuracy.tolist() == near(0.274995, -0.274995)


def test_scale_none_only_centres() -> None:
    # Accuracy 1, 0.1, 0.1, 0.1 around 0.325; efficiency 1 and 1/2 around 3/4.
    assert hdpo_advantages(
        *rewards([1, 0, 0, 0], [1, 0, 0, 0]), 4, scale="none"
    ).accuracy.tolist() == (near(0.675, -0.225, -0.225, -0.225))
    found = hdpo_advantages(*rewards([1, 1, 0, 0], [0, 1, 0, 3]), 4, scale="none")
    assert found.efficiency.tolist() == near(0.25, -0.25, 0.0, 0.0)


def test_scale_batch_divides_by_the_std_of_all_that_is_compared() -> None:
    # Accuracy 1, 0.1, 1, 1: mean 0.775, variance (3·0.050625 + 0.455625)/3 = 0.2025, std 0.45;
    # groups deviate by ±0.45 and 0. Efficiency of the right ones 1, 1, 1/2: mean 5/6, variance
    # (2/36 + 4/36)/2 = 1/12, std 0.288675; the second group deviates by ±1/4.
    found = hdpo_advantages(*rewards([1, 0, 1, 1], [0, 0, 0, 1]), 2, scale="batch")
    assert found.accuracy.tolist() == near(1.0, -1.0, 0.0, 0.0)
    assert found.efficiency.tolist() == near(0.0, 0.0, 0.866025, -0.866025)


def test_a_reward_that_only_part_of_a_group_got_counts_as_a_failed_judge() -> None:
    # Columns: a judge, the format, and a function that applies to the second prompt only.
    found = judge_failed(
        torch.tensor(
            [
                [1.0, 1.0, NAN],
                [NAN, 1.0, NAN],
                [NAN, NAN, NAN],
                [NAN, 1.0, 0.0],
                [NAN, 1.0, 1.0],
                [NAN, 1.0, NAN],
            ]
        ),
        3,
    )
    assert found.tolist() == [False, True, True, False, False, True]


def test_a_judge_that_failed_for_a_whole_group_failed_and_one_that_does_not_apply_did_not() -> None:
    # Columns: a judge, which failed on the first prompt and does not apply to the second; a format.
    found = judge_failed(torch.tensor([[FAILED, 1.0]] * 2 + [[NAN, 1.0]] * 2), 2)
    assert found.tolist() == [True, True, False, False]


@pytest.mark.parametrize("calls", [2, 6])
def test_equal_rewards_give_exactly_zero_whatever_the_rounding(calls: int) -> None:
    # 1/3 and 1/7 have no exact float: a mean of seven of them need not equal them.
    found = hdpo_advantages(*rewards([1] * 7, [calls] * 7), 7)
    assert not found.efficiency.any()
    assert not found.accuracy.any()


@pytest.mark.parametrize("size", [3, 5])
def test_rows_that_do_not_divide_into_groups_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="groups of 2"):
        hdpo_advantages(torch.ones(size), torch.ones(size), torch.ones(size), 2)


def test_vectors_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        hdpo_advantages(torch.ones(4), torch.ones(2), torch.ones(4), 2)


GROUPS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 4)), min_size=8, max_size=8
)


@given(rows=GROUPS, order=st.permutations(range(4)))
@settings(max_examples=100, deadline=None)
def test_properties_of_the_advantages(rows: list[tuple[int, int, int]], order: list[int]) -> None:
    right, form, calls = (torch.tensor(column) for column in zip(*rows, strict=True))
    accuracy, efficiency = accuracy_rewards(right, form), efficiency_rewards(right, calls)
    found = hdpo_advantages(accuracy, efficiency, right, 4)

    # Zero outside the qualifying set, and each channel sums to zero within its group.
    assert not found.efficiency[right == 0].any()
    assert found.accuracy.view(2, 4).sum(1).abs().max() < 1e-4
    assert found.efficiency.view(2, 4).sum(1).abs().max() < 1e-4

    # Permuting rollouts within a group permutes their advantages.
    mixed = torch.tensor([*order, *(4 + index for index in order)])
    moved = hdpo_advantages(accuracy[mixed], efficiency[mixed], right[mixed], 4)
    assert torch.allclose(moved.accuracy, found.accuracy[mixed], atol=1e-5)
    assert torch.allclose(moved.efficiency, found.efficiency[mixed], atol=1e-5)

    # Scale and offset of a reward do not matter (up to eps); the channels do not touch each other.
    other = hdpo_advantages(3 * accuracy + 1, 5 * efficiency, right, 4)
    assert torch.allclose(other.accuracy, found.accuracy, atol=1e-3)
    assert torch.allclose(other.efficiency, found.efficiency, atol=1e-3)
    apart = hdpo_advantages(accuracy, efficiency**2, right, 4)
    assert torch.equal(apart.accuracy, found.accuracy)
