"""The two rewards HDPO keeps apart: being right, and being right with few tool calls.

B: rollouts. P: prompts. G: rollouts per prompt (a group). F: reward functions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """What the rollouts of all processes earned, each [B]; accuracy is NaN where not judged."""

    accuracy: Tensor
    efficiency: Tensor
    correct: Tensor
    tool_calls: Tensor


ANSWER_SHARE = 0.9
FORMAT_SHARE = 0.1


def accuracy_rewards(answer_B: Tensor, format_B: Tensor) -> Tensor:
    """`0.9·answer + 0.1·format`, [B] in 0…1.

    Args:
        answer_B: 1 where the answer is right, NaN where it could not be judged.
        format_B: 1 where every call parses and exactly one answer ends the rollout.
    """
    return ANSWER_SHARE * answer_B.float() + FORMAT_SHARE * format_B.float()


FAILED = math.inf
"""Stands for a judge that failed, beside NaN, which is TRL's for one that does not apply."""


def judge_failed(rewards_BF: Tensor, num_generations: int) -> Tensor:
    """Rollouts whose judge failed: what is left of their reward cannot be compared, [B].

    That is, a function said `FAILED`; or nothing (NaN) where it has a reward for others of the
    group, while one that says nothing about a whole group does not apply to that prompt; or none
    has a reward.

    Args:
        rewards_BF: rewards of F functions, groups of `num_generations` in a row.
        num_generations: G.
    """
    missing_PGF = rewards_BF.isnan().view(-1, num_generations, rewards_BF.shape[1])
    applies_P1F = ~missing_PGF.all(dim=1, keepdim=True)
    failed_PG = (missing_PGF & applies_P1F).any(dim=2) | missing_PGF.all(dim=2)
    return failed_PG.flatten() | (rewards_BF == FAILED).any(dim=1)


def efficiency_rewards(correct_B: Tensor, tool_calls_B: Tensor) -> Tensor:
    """`1/(T+1)` for a correct rollout of T tool calls and 0 for any other, [B] in 0…1."""
    return torch.where(correct_B.bool(), 1.0 / (tool_calls_B.float() + 1.0), 0.0)
