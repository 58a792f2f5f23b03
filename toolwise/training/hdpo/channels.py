"""From what the rollouts of a step earned to the advantages of each channel.

B = P·G: rollouts of all processes, of which rows p·G … p·G+G−1 share a prompt.
"""

from __future__ import annotations

from torch import Tensor

from toolwise.training.hdpo.advantages import Scale, hdpo_advantages
from toolwise.training.hdpo.config import HDPOConfig
from toolwise.training.hdpo.difficulty import eapo_rewards, easiness
from toolwise.training.hdpo.rewards import Scores

_EPS = 1e-4  # TRL's own, so that a coupled reward is normalised as TRL would


def efficiency_advantages(scores: Scores, group: int, scale: Scale, settings: HDPOConfig) -> Tensor:
    """The efficiency channel's advantages, [B]."""
    advantages = hdpo_advantages(*scores[:3], group, scale=scale).efficiency
    if settings.difficulty_aware:
        return advantages * easiness(scores.accuracy, scores.correct, group)
    return advantages


def one_channel_advantages(
    scores: Scores, group: int, scale: Scale, settings: HDPOConfig
) -> Tensor:
    """Advantages of the one reward of the variants `coupled` and `eapo`, [B]."""
    accuracy, efficiency, correct, calls = scores
    if settings.variant == "eapo":
        reward = eapo_rewards(accuracy, correct, calls, group, beta=settings.alpha)
    else:
        if settings.difficulty_aware:
            efficiency = efficiency * easiness(accuracy, correct, group)
        reward = accuracy + settings.alpha * efficiency
    return hdpo_advantages(reward, efficiency, correct, group, eps=_EPS, scale=scale).accuracy
