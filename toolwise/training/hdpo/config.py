"""Settings of `HDPOTrainer`: TRL's own, plus what HDPO adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trl.trainer.grpo_config import GRPOConfig

from toolwise.training.hdpo.loss import Aggregation, Normalize

Variant = Literal["hdpo", "grpo", "coupled"]


@dataclass
class HDPOConfig(GRPOConfig):
    """`GRPOConfig` plus what HDPO adds.

    TRL's own settings carry over to both channels: `epsilon` and `epsilon_high` clip the ratio,
    `delta` is the dual clip, and `loss_type` says how losses are averaged ("grpo": over each
    rollout's tokens, then over rollouts; any other: over tokens).
    """

    w_acc: float = field(
        default=1.0, metadata={"help": "Weight of the accuracy channel, TRL's loss."}
    )
    w_tool: float = field(default=0.15, metadata={"help": "Weight of the efficiency channel."})
    variant: Variant = field(
        default="hdpo",
        metadata={
            "help": "'hdpo'; 'grpo' (no efficiency channel); 'coupled' (one channel, the reward "
            "is accuracy + alpha · efficiency)."
        },
    )
    alpha: float = field(default=0.15, metadata={"help": "Weight of efficiency when coupled."})
    efficiency_normalize: Normalize = field(
        default="qualifying",
        metadata={"help": "Average the efficiency loss over 'qualifying' rollouts or the 'group'."},
    )
    correct_above: float = field(
        default=0.5, metadata={"help": "A rollout is correct if its accuracy reward exceeds this."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("hdpo", "grpo", "coupled"):
            raise ValueError(f"variant must be 'hdpo', 'grpo' or 'coupled', not {self.variant!r}")
        if self.efficiency_normalize not in ("qualifying", "group"):
            raise ValueError(
                "efficiency_normalize must be 'qualifying' or 'group', "
                f"not {self.efficiency_normalize!r}"
            )
        if self.loss_type in ("cispo", "sapo", "vespo", "luspo") and self.efficiency_weight:
            raise ValueError(f"loss_type {self.loss_type!r} has no clipped surrogate to share")

    @property
    def efficiency_weight(self) -> float:
        """w_tool, or 0 where the variant has no efficiency channel."""
        return self.w_tool if self.variant == "hdpo" else 0.0

    @property
    def aggregation(self) -> Aggregation:
        """How the efficiency loss is averaged, following `loss_type`."""
        return "rollout" if self.loss_type == "grpo" else "token"
