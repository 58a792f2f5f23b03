"""Efficiency that counts by how easy a prompt is (EAPO, arXiv 2606.02132).

The group says how difficult its prompt is: d = 1 − share of right rollouts. Where nearly all are
right a needless call is worth punishing; where few are, exploring with tools is left alone.

B = P·G: rollouts, of which rows p·G … p·G+G−1 share a prompt. A rollout whose judge failed (reward
NaN) says nothing about difficulty and stays NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def easiness(accuracy: Tensor, correct: Tensor, num_generations: int) -> Tensor:
    """1 − d, the share of right rollouts among the judged ones of the group, [B] in 0…1.

    Args:
        accuracy: [B] accuracy rewards, NaN where not judged.
        correct: [B] whether the answer is right.
        num_generations: G.
    """
    judged_PG = ~accuracy.view(-1, num_generations).isnan()
    right_PG = judged_PG & correct.view(-1, num_generations).bool()
    share_P = right_PG.sum(dim=1) / judged_PG.sum(dim=1).clamp(min=1)
    return share_P.repeat_interleave(num_generations)


def eapo_rewards(
    accuracy: Tensor, correct: Tensor, tool_calls: Tensor, num_generations: int, beta: float
) -> Tensor:
    """EAPO's one reward R·[d + (1 − d)·exp(−β·(T − T_min))], [B].

    T_min is the least number of calls among the judged rollouts of the group.

    Args:
        accuracy: [B] accuracy rewards R, NaN where not judged.
        correct: [B] whether the answer is right.
        tool_calls: [B] T.
        num_generations: G.
        beta: how fast the reward of an easy prompt falls with each call.
    """
    easy = easiness(accuracy, correct, num_generations)
    calls = tool_calls.float().masked_fill(accuracy.isnan(), torch.inf)
    fewest_P = calls.view(-1, num_generations).amin(dim=1)
    excess = tool_calls - fewest_P.repeat_interleave(num_generations)
    return accuracy * ((1 - easy) + easy * torch.exp(-beta * excess))
