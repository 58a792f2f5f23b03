"""What a step's rollouts look like, for the training log.

B = P·G: rollouts, of which rows p·G … p·G+G−1 share a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolwise.training.hdpo.collapse import MISSED, call_need
from toolwise.training.hdpo.rewards import Scores


def rollout_metrics(
    scores: Scores, num_generations: int, with_tools: int | None = None
) -> dict[str, Tensor]:
    """Metrics of a step's rollouts by name (scalars); see docs/metrics.md.

    Args:
        scores: of all rollouts.
        num_generations: G.
        with_tools: how many of a group were offered tools, its first; None for all. Only those
            enter the rates of calls.
    """
    judged = ~scores.accuracy.isnan()
    in_group = scores.correct.view(-1, num_generations).sum(dim=1)
    calls = scores.tool_calls.view(-1, num_generations)[:, :with_tools].float()
    place = torch.arange(scores.correct.numel(), device=judged.device) % num_generations
    need = call_need(
        scores.accuracy,
        scores.correct,
        scores.tool_calls,
        num_generations,
        offered=place < (num_generations if with_tools is None else with_tools),
    )
    return {
        "accuracy": scores.correct[judged].float().mean(),
        "accuracy_reward": scores.accuracy.nanmean(),
        "judge_failures": 1 - judged.float().mean(),
        "tool_call_rate": (calls > 0).float().mean(),
        "calls_per_rollout": calls.mean(),
        MISSED: need.missed_call_rate,
        "necessary_call_rate/estimate": need.necessary_call_rate,
        "qualifying/rollouts": in_group[in_group >= 2].sum() / scores.correct.numel(),
        "qualifying/groups": (in_group >= 2).float().mean(),
    }
