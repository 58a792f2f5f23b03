"""Tool-free rollouts in each group (EAPO, arXiv 2606.02132), and the weights they need.

Of a group's G rollouts, n are sampled under the prompt without tools. They show what the model can
do by itself even where it would never abstain, and the group compares both ways of answering.

What is trained is π(· | prompt with tools), and those n come from μ(· | prompt without tools). With
λ = n/G the group is a sample of the mixture (1 − λ)·π + λ·μ, so a mean over it estimates an
expectation under π when each rollout y is weighted by

    w(y) = π(y) / ((1 − λ)·π(y) + λ·μ(y)) = 1 / ((1 − λ) + λ·μ(y)/π(y)),

the balance heuristic of multiple importance sampling (Veach & Guibas, SIGGRAPH 1995, section 3.3).
It lies in 0 … 1/(1 − λ), so nothing has to be truncated. Three cases are exact:

- a rollout that calls a tool cannot come from μ, so w = 1/(1 − λ): it stands in for those that
  were not sampled with tools;
- a tool-free rollout in which the model writes a call ends there, as none under π does, so w = 0;
- a direct answer has both likelihoods, whichever prompt it was sampled under.

B: rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from toolwise.agent import Rollout, Sampling
from toolwise.data import Task
from toolwise.training.hdpo.agent import RolloutAgent


def is_tool_free(index: int, num_generations: int, tool_free: int) -> bool:
    """Whether the rollout at `index` of the whole batch is tool-free: a group's last n are."""
    return index % num_generations >= num_generations - tool_free


def mixture_weights(with_tools_B: Tensor, without_tools_B: Tensor, share: float) -> Tensor:
    """w(y) of each rollout, [B] in 0 … 1/(1 − share).

    Args:
        with_tools_B: log π(y), of the whole rollout; −inf where it cannot come from π.
        without_tools_B: log μ(y); −inf where it cannot come from μ.
        share: λ, part of the rollouts that is sampled from μ, 0 ≤ λ < 1.
    """
    return 1 / ((1 - share) + share * torch.exp(without_tools_B - with_tools_B))


def answer_both_ways(
    agent: RolloutAgent, tasks: Sequence[Task], sampling: Sampling, free: Sequence[bool]
) -> list[Rollout]:
    """One rollout per task, in order; those marked `free` under the prompt without tools."""
    if not any(free):
        return list(agent.answer(tasks, sampling))
    alone = [task for task, is_free in zip(tasks, free, strict=True) if is_free]
    offered = [task for task, is_free in zip(tasks, free, strict=True) if not is_free]
    # Seeded apart, or the two kinds would be drawn with the same random numbers.
    apart = replace(sampling, seed=None if sampling.seed is None else 2**31 - 1 - sampling.seed)
    ways = {
        False: iter(agent.answer(offered, sampling)),
        True: iter(agent.answer(alone, apart, tool_free=True)),
    }
    return [next(ways[is_free]) for is_free in free]
