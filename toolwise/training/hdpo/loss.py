"""HDPO's loss: two clipped surrogates of the same log-probabilities (arXiv 2604.08545).

B: rollouts. T: completion tokens, padded to the longest.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["token", "rollout"]
"""How a loss is averaged: over tokens, or over each rollout's tokens and then over rollouts."""

Normalize = Literal["qualifying", "group"]
"""What the efficiency loss is averaged over: rollouts with an efficiency signal, or all."""


class HDPOLoss(NamedTuple):
    """Scalars: the weighted sum, and the two surrogates it is made of (unweighted)."""

    loss: Tensor
    accuracy: Tensor
    efficiency: Tensor


Level = Literal["token", "sequence"]
"""Whose likelihood ratio is clipped: each token's, or its mean over the rollout (GSPO)."""


def hdpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    accuracy_advantages: Tensor,
    efficiency_advantages: Tensor,
    mask: Tensor,
    w_acc: float = 1.0,
    w_tool: float = 0.15,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    normalize: Normalize = "qualifying",
    aggregation: Aggregation = "token",
    level: Level = "token",
) -> HDPOLoss:
    """`w_acc · L(A_acc) + w_tool · L(A_tool)`.

    Args:
        logps: [B, T] log-probabilities under the policy being trained.
        old_logps: [B, T] the same under the policy that sampled.
        accuracy_advantages: [B].
        efficiency_advantages: [B].
        mask: [B, T] 1 on tokens the model wrote; tool responses and padding are 0.
        w_acc: weight of the accuracy channel.
        w_tool: weight of the efficiency channel.
        clip_low: the ratio is clipped below at 1 − clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        dual_clip: bound on the loss of negative advantages, in units of |A|; None for no bound.
        normalize: `qualifying` averages the efficiency loss over rollouts whose efficiency
            advantage is not zero (as the reference implementation does), `group` over all.
        aggregation: `token` is the mean over tokens, `rollout` the mean over rollouts of each
            one's token mean, in which a long rollout weighs no more than a short one.
        level: `token` clips each token's ratio, `sequence` the geometric mean of a rollout's.

    Raises:
        ValueError: `normalize` or `aggregation` is none of its names.
    """
    settings = {
        "clip_low": clip_low,
        "clip_high": clip_high,
        "dual_clip": dual_clip,
        "aggregation": aggregation,
        "level": level,
    }
    accuracy = surrogate(logps, old_logps, accuracy_advantages, mask, **settings)
    efficiency = surrogate(
        logps,
        old_logps,
        efficiency_advantages,
        efficiency_mask(efficiency_advantages, mask, normalize),
        **settings,
    )
    return HDPOLoss(w_acc * accuracy + w_tool * efficiency, accuracy, efficiency)


def efficiency_mask(advantages_B: Tensor, mask_BT: Tensor, normalize: Normalize) -> Tensor:
    """The tokens the efficiency loss is averaged over, [B, T].

    Raises:
        ValueError: `normalize` is neither `qualifying` nor `group`.
    """
    if normalize == "group":
        return mask_BT
    if normalize != "qualifying":
        raise ValueError(f"normalize must be 'qualifying' or 'group', not {normalize!r}")
    return mask_BT * (advantages_B != 0).unsqueeze(1)


def surrogate(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    aggregation: Aggregation = "token",
    level: Level = "token",
    weights_BT: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """One clipped policy-gradient loss, averaged over the masked tokens (scalar).

    PPO's pessimistic bound (arXiv 1707.06347, eq. 7) with dual clip (arXiv 1912.09729, eq. 5);
    with `level="sequence"` of GSPO's ratio (arXiv 2507.18071, eq. 7).

    Args:
        logps_BT: [B, T] log-probabilities under the policy being trained.
        old_logps_BT: [B, T] the same under the policy that sampled.
        advantages_B: [B].
        mask_BT: [B, T] 1 on the tokens that count.
        clip_low: the ratio is clipped below at 1 − clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        dual_clip: bound on the loss of negative advantages, in units of |A|; None for no bound.
        aggregation: `token` is the mean over tokens, `rollout` the mean over rollouts of each
            one's token mean.
        level: `token` clips each token's ratio, `sequence` the geometric mean of a rollout's.
        weights_BT: [B, T] (or [B, 1]) factors on each token's loss, for importance sampling.
        count: this batch's share of the mean's denominator, positive; by default the batch is
            the whole, and it is `mean_count`, at least 1.

    Raises:
        ValueError: no `count` is given, and `aggregation` is neither `token` nor `rollout`.
    """
    mask_BT = mask_BT.bool()
    log_ratio_BT = (logps_BT - old_logps_BT).masked_fill(~mask_BT, 0.0)
    if level == "sequence":
        mean_B1 = log_ratio_BT.sum(dim=1, keepdim=True) / mask_BT.sum(dim=1, keepdim=True).clamp(
            min=1
        )
        log_ratio_BT = mean_B1.expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    advantages_B1 = advantages_B.unsqueeze(1)
    loss_BT = -torch.minimum(
        ratio_BT * advantages_B1,
        ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_B1,
    )
    if dual_clip is not None:
        bounded_BT = torch.minimum(loss_BT, -dual_clip * advantages_B1)
        loss_BT = torch.where(advantages_B1 < 0, bounded_BT, loss_BT)
    if weights_BT is not None:
        loss_BT = loss_BT * weights_BT
    loss_BT = loss_BT.masked_fill(~mask_BT, 0.0)
    if count is None:
        count = mean_count(mask_BT, aggregation).clamp(min=1)
    if aggregation == "rollout":
        loss_BT = loss_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return loss_BT.sum() / count


def mean_count(mask_BT: Tensor, aggregation: Aggregation) -> Tensor:
    """How many tokens, or rollouts with any token, a mean over the mask is taken over (scalar).

    Raises:
        ValueError: `aggregation` is neither `token` nor `rollout`.
    """
    if aggregation == "rollout":
        return mask_BT.bool().any(dim=1).sum()
    if aggregation != "token":
        raise ValueError(f"aggregation must be 'token' or 'rollout', not {aggregation!r}")
    return mask_BT.bool().sum()
