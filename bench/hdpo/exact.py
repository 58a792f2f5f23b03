"""What each method pushes towards, worked out without sampling.

A policy answers one prompt by calling, with probability p, or directly; a call leads to a right
answer with probability c_T, a direct answer with c_D. A group of G such rollouts has one of
finitely many compositions; summing over all of them gives the expected gradient of a method with
respect to the log-odds of answering directly, exactly. Positive means: answer directly more often.

N: compositions of a group. G: rollouts. The four kinds of rollout, in order: call right, call
wrong, direct right, direct wrong (as the judge sees them).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import factorial
from typing import NamedTuple

import torch
from torch import Tensor

from toolwise.training.hdpo.advantages import hdpo_advantages
from toolwise.training.hdpo.difficulty import eapo_rewards
from toolwise.training.hdpo.rewards import accuracy_rewards, efficiency_rewards

G = 8
_CALLS = torch.tensor([1, 1, 0, 0])
_RIGHT = torch.tensor([1, 0, 1, 0])


class Prompt(NamedTuple):
    """A prompt under a policy.

    Args:
        call: probability of calling a tool.
        right_with_call: of a right answer after a call.
        right_directly: of a right answer without one.
        flipped: share of verdicts the judge turns round.
    """

    call: float
    right_with_call: float
    right_directly: float
    flipped: float = 0.0


class Push(NamedTuple):
    """Expected gradient with respect to the log-odds of answering directly, and its spread.

    `std` is that of one group's contribution: mean/std says how many groups it takes to notice.
    """

    mean: float
    std: float


Channel = Callable[[Tensor, Tensor], Tensor]
"""(right, calls) of the rollouts of the groups, each [N·G] → their advantages, [N·G]."""


class Method(NamedTuple):
    """A way of training.

    Args:
        channel: the only one, or HDPO's accuracy channel.
        w_tool: weight of HDPO's efficiency channel beside it.
        over_all: average that over all rollouts instead of the qualifying ones.
    """

    channel: Channel
    w_tool: float = 0.0
    over_all: bool = False


def grpo(right: Tensor, calls: Tensor) -> Tensor:
    """The accuracy channel alone."""
    return _one_channel(accuracy_rewards(right, torch.ones_like(right)), right)


def coupled(alpha: float, *, conditional: bool = True) -> Channel:
    """One reward, accuracy + alpha · efficiency; efficiency paid to wrong answers too if not
    `conditional`."""

    def method(right: Tensor, calls: Tensor) -> Tensor:
        paid = right if conditional else torch.ones_like(right)
        reward = accuracy_rewards(right, torch.ones_like(right))
        return _one_channel(reward + alpha * efficiency_rewards(paid, calls), right)

    return method


def eapo(beta: float) -> Channel:
    """EAPO's difficulty-aware reward."""

    def method(right: Tensor, calls: Tensor) -> Tensor:
        reward = accuracy_rewards(right, torch.ones_like(right))
        return _one_channel(eapo_rewards(reward, right, calls, G, beta), right)

    return method


def push(prompt: Prompt, method: Method) -> Push:
    """What a method does to the log-odds of answering directly, in a batch of such prompts."""
    kinds_NG, probability_N = _groups(prompt)
    right, calls = _RIGHT[kinds_NG].flatten(), _CALLS[kinds_NG].flatten()
    # d log π(rollout) / d log-odds: how much more direct it is than the policy.
    score_NG = (1 - calls.view(-1, G)) - (1 - prompt.call)
    group_N = (method.channel(right, calls).view(-1, G) * score_NG).mean(dim=1)
    if method.w_tool:
        efficiency = efficiency_rewards(right, calls)
        reward = accuracy_rewards(right, torch.ones_like(right))
        advantages_NG = hdpo_advantages(reward, efficiency, right, G).efficiency.view(-1, G)
        # Of a group on average, in a batch of many.
        qualifying = (probability_N * (advantages_NG != 0).sum(dim=1)).sum().clamp(min=1e-12)
        count = G if method.over_all else qualifying
        group_N = group_N + method.w_tool * (advantages_NG * score_NG).sum(dim=1) / count
    mean = (probability_N * group_N).sum()
    std = (probability_N * (group_N - mean).square()).sum().sqrt()
    return Push(mean.item(), std.item())


def break_even(method: Method, call: float, right_with_call: float) -> float | None:
    """The direct accuracy above which a method favours answering directly; None if it always does.

    Bisection to 1e-4 in c_D, between 0 and 1.
    """

    def pushes(right_directly: float) -> float:
        return push(Prompt(call, right_with_call, right_directly), method).mean

    low, high = 0.0, 1.0
    if pushes(low) > 0:
        return None
    if pushes(high) <= 0:
        return 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if pushes(middle) <= 0 else (low, middle)
    return high


def _one_channel(reward: Tensor, right: Tensor) -> Tensor:
    return hdpo_advantages(reward, reward, right, G, eps=1e-4).accuracy


def _groups(prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Every composition of a group, kinds [N, G], and its probability [N]."""
    call, with_call, directly, flipped = prompt
    seen = [c * (1 - flipped) + (1 - c) * flipped for c in (with_call, directly)]
    chances = (
        call * seen[0],
        call * (1 - seen[0]),
        (1 - call) * seen[1],
        (1 - call) * (1 - seen[1]),
    )
    kinds, probabilities = [], []
    for bars in combinations(range(G + 3), 3):  # stars and bars
        counts = [b - a - 1 for a, b in zip((-1, *bars), (*bars, G + 3), strict=True)]
        probability = float(factorial(G))
        for count, chance in zip(counts, chances, strict=True):
            probability *= chance**count / factorial(count)
        kinds.append([kind for kind, count in enumerate(counts) for _ in range(count)])
        probabilities.append(probability)
    return torch.tensor(kinds), torch.tensor(probabilities)
