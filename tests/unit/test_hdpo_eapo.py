"""EAPO's weights and rewards against values worked out by hand, and their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolwise.training.hdpo.config import HDPOConfig
from toolwise.training.hdpo.difficulty import eapo_rewards, easiness
from toolwise.training.hdpo.tool_free import is_tool_free, mixture_weights

NEVER = -math.inf
NAN = math.nan


def weight(with_tools: float, without_tools: float, share: float = 0.25) -> float:
    found = mixture_weights(torch.tensor([with_tools]), torch.tensor([without_tools]), share)
    return found.item()


def test_the_last_rollouts_of_each_group_are_tool_free() -> None:
    assert [is_tool_free(i, 4, 1) for i in range(8)] == [False, False, False, True] * 2
    assert not any(is_tool_free(i, 4, 0) for i in range(8))


def test_mixture_weights_by_hand() -> None:
    # 1 / (3/4 + 1/4 · μ/π)
    assert weight(-5.0, -5.0) == pytest.approx(1.0)  # as likely under either prompt
    assert weight(-3.0, -3.0 + math.log(9)) == pytest.approx(1 / 3)  # 1/(0.75 + 2.25)
    assert weight(-1.0, NEVER) == pytest.approx(4 / 3)  # calls a tool: stands for those not sampled
    assert weight(NEVER, -1.0) == 0.0  # a call without tools on offer, which ends there
    assert weight(-3.0, -1.0, share=0.0) == 1.0


@given(
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    st.integers(0, 7),
)
def test_a_weighted_mean_over_the_mixture_is_the_mean_under_the_policy(
    with_tools: list[float], without_tools: list[float], tool_free: int
) -> None:
    # Three direct answers that both prompts may lead to, one rollout with a call that only the
    # prompt with tools does, and one stray call that only the other does.
    pi = torch.tensor([*with_tools, 0.0], dtype=torch.float64)
    mu = torch.tensor([*without_tools[:3], 0.0, without_tools[3]], dtype=torch.float64)
    pi, mu = pi / pi.sum(), mu / mu.sum()
    share = tool_free / 8
    value = torch.tensor([1.0, -2.0, 0.5, 3.0, 7.0], dtype=torch.float64)
    drawn = (1 - share) * pi + share * mu
    weights = mixture_weights(pi.log(), mu.log(), share)
    met = drawn > 0
    found = (drawn * weights * value)[met].sum()
    assert found.item() == pytest.approx((pi * value).sum().item(), rel=1e-9)


def test_easiness_is_the_share_of_right_rollouts_among_the_judged() -> None:
    accuracy = torch.tensor([1.0, 1.0, 0.1, 1.0, 1.0, NAN, 0.1, 1.0])
    correct = torch.tensor([1, 1, 0, 1, 1, 0, 0, 1])
    found = easiness(accuracy, correct, 4).tolist()
    assert found == pytest.approx([0.75] * 4 + [2 / 3] * 4)


def test_eapo_reward_by_hand() -> None:
    # Three of four right: d = 1/4. β = ln 2 halves the easy part with each call beyond the fewest:
    # 0 calls 1; 1 call 1/4 + 3/4 · 1/2 = 0.625; 2 calls 1/4 + 3/4 · 1/4 = 0.4375.
    found = eapo_rewards(
        torch.tensor([1.0, 1.0, 0.1, 1.0]),
        torch.tensor([1, 1, 0, 1]),
        torch.tensor([0, 1, 0, 2]),
        4,
        beta=math.log(2),
    )
    assert found.tolist() == pytest.approx([1.0, 0.625, 0.1, 0.4375])


def test_eapo_reward_spares_calls_that_all_make_and_prompts_that_none_solves() -> None:
    accuracy, calls = torch.tensor([1.0, 1.0, 0.1, 0.1]), torch.tensor([1, 1, 0, 3])
    correct = torch.tensor([1, 1, 0, 0])
    assert torch.equal(eapo_rewards(accuracy, correct, calls, 2, beta=1.0), accuracy)


def test_eapo_reward_of_an_unjudged_rollout_is_unknown_and_changes_no_other() -> None:
    found = eapo_rewards(
        torch.tensor([1.0, 1.0, NAN]),
        torch.tensor([1, 1, 0]),
        torch.tensor([1, 2, 0]),  # the unjudged one has the fewest calls
        3,
        beta=math.log(2),
    )
    assert found[:2].tolist() == pytest.approx([1.0, 0.5])
    assert found[2].isnan()


def test_a_group_needs_a_rollout_with_tools() -> None:
    with pytest.raises(ValueError, match="at least one rollout with tools"):
        HDPOConfig(output_dir="unused", num_generations=4, tool_free=4, use_cpu=True, bf16=False)
