"""HDPO's two group-relative advantages (arXiv 2604.08545).

B = P·G: rollouts, of which rows p·G … p·G+G−1 share a prompt.
P: prompts. G: rollouts per prompt (a group).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]
"""What a centred reward is divided by: its std in the group, in the batch, or nothing."""


class HDPOAdvantages(NamedTuple):
    """Advantages of both channels, each [B]."""

    accuracy: Tensor
    efficiency: Tensor


def hdpo_advantages(
    accuracy: Tensor,
    efficiency: Tensor,
    correct: Tensor,
    num_generations: int,
    eps: float = 1e-6,
    scale: Scale = "group",
) -> HDPOAdvantages:
    """Accuracy compared within the group, efficiency within its qualifying set.

    Both are (r − mean)/(std + eps) with the unbiased std: accuracy over all rollouts of the group,
    efficiency over Q, the correct ones among them. The efficiency advantage is zero outside Q and
    where |Q| < 2; either is exactly zero where the rewards compared are all the same. A rollout
    with a NaN reward (its judge failed) is out of both channels: it is compared with nothing and
    its advantages are zero.

    Args:
        accuracy: [B] accuracy rewards.
        efficiency: [B] efficiency rewards.
        correct: [B] whether the answer is right.
        num_generations: G.
        eps: added to the std.
        scale: whose std.

    Raises:
        ValueError: the shapes differ, or B is not a multiple of G.
    """
    if not accuracy.shape == efficiency.shape == correct.shape or accuracy.dim() != 1:
        raise ValueError(
            "accuracy, efficiency and correct must be vectors of one length, got "
            f"{tuple(accuracy.shape)}, {tuple(efficiency.shape)}, {tuple(correct.shape)}"
        )
    if num_generations < 1 or accuracy.numel() % num_generations:
        raise ValueError(
            f"{accuracy.numel()} rollouts do not divide into groups of {num_generations}"
        )
    accuracy_PG = accuracy.float().view(-1, num_generations)
    efficiency_PG = efficiency.float().view(-1, num_generations)
    judged_PG = ~(accuracy_PG.isnan() | efficiency_PG.isnan())
    qualifying_PG = judged_PG & correct.view(-1, num_generations).bool()
    return HDPOAdvantages(
        _standardise(accuracy_PG, judged_PG, eps, scale).flatten(),
        _standardise(efficiency_PG, qualifying_PG, eps, scale).flatten(),
    )


def _standardise(reward_PG: Tensor, among_PG: Tensor, eps: float, scale: Scale) -> Tensor:
    """(r − mean)/(std + eps) per row among the marked entries, zero elsewhere: [P, G]."""
    reward_PG = reward_PG.masked_fill(~among_PG, 0.0)
    count_P1 = among_PG.sum(dim=1, keepdim=True)
    mean_P1 = reward_PG.sum(dim=1, keepdim=True) / count_P1.clamp(min=1)
    centred_PG = (reward_PG - mean_P1).masked_fill(~among_PG, 0.0)
    # Rounding in the mean would give equal rewards an advantage, and make them qualify.
    highest_P1 = reward_PG.masked_fill(~among_PG, -torch.inf).amax(dim=1, keepdim=True)
    lowest_P1 = reward_PG.masked_fill(~among_PG, torch.inf).amin(dim=1, keepdim=True)
    if scale == "group":
        squares_P1 = centred_PG.square().sum(dim=1, keepdim=True)
        centred_PG = centred_PG / ((squares_P1 / (count_P1 - 1).clamp(min=1)).sqrt() + eps)
    elif scale == "batch":
        compared = reward_PG[among_PG]
        centred_PG = centred_PG / ((compared.std() if compared.numel() > 1 else 0.0) + eps)
    return torch.where(highest_P1 > lowest_P1, centred_PG, 0.0)
