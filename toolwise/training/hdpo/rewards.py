"""The two rewards HDPO keeps apart: being right, and being right with few tool calls.

B: rollouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

ANSWER_SHARE = 0.9
FORMAT_SHARE = 0.1


def accuracy_rewards(answer_B: Tensor, format_B: Tensor) -> Tensor:
    """`0.9·answer + 0.1·format`, [B] in 0…1.

    Args:
        answer_B: 1 where the answer is right, NaN where it could not be judged.
        format_B: 1 where every call parses and exactly one answer ends the rollout.
    """
    return ANSWER_SHARE * answer_B.float() + FORMAT_SHARE * format_B.float()


def efficiency_rewards(correct_B: Tensor, tool_calls_B: Tensor) -> Tensor:
    """`1/(T+1)` for a correct rollout of T tool calls and 0 for any other, [B] in 0…1."""
    return torch.where(correct_B.bool(), 1.0 / (tool_calls_B.float() + 1.0), 0.0)
