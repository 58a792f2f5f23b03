"""Settings of `HDPOTrainer`: TRL's own, plus what HDPO adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from trl.trainer.grpo_config import GRPOConfig

from toolwise.training.hdpo.loss import Aggregation, Normalize

Variant = Literal["hdpo", "grpo", "coupled", "eapo"]

UNSHARED = ("cispo", "sapo", "vespo", "luspo")
"""Loss types of TRL that have no clipped surrogate for two channels to share."""


@dataclass
class HDPOConfig(GRPOConfig):
    """`GRPOConfig` plus what HDPO adds.

    TRL's own settings carry over to both channels: `epsilon` and `epsilon_high` clip the ratio,
    `delta` is the dual clip (None, its default, is none; the paper's reference implementation and
    `hdpo_loss` have 3.0), `importance_sampling_level` whose ratio is clipped, `scale_rewards`
    what advantages are divided by, and `loss_type` how losses are averaged: "grpo" over each
    rollout's tokens and then over rollouts, "dr_grpo" over rollouts of `max_completion_length`
    tokens, "dapo" and "bnpo" over tokens (the efficiency channel over those of all processes).
    """

    w_acc: float = field(
        default=1.0, metadata={"help": "Weight of the accuracy channel, TRL's loss."}
    )
    w_tool: float = field(default=0.15, metadata={"help": "Weight of the efficiency channel."})
    variant: Variant = field(
        default="hdpo",
        metadata={
            "help": "'hdpo'; 'grpo' (no efficiency channel); 'coupled' (one channel, the reward "
            "is accuracy + alpha · efficiency); 'eapo' (one channel, EAPO's difficulty-aware "
            "reward, whose beta is alpha)."
        },
    )
    alpha: float = field(
        default=0.15, metadata={"help": "Strength of efficiency in a reward of one channel."}
    )
    difficulty_aware: bool = field(
        default=False,
        metadata={"help": "Weight efficiency by the share of right rollouts in the group (EAPO)."},
    )
    tool_free: int = field(
        default=0,
        metadata={
            "help": "Rollouts of each group that are sampled under the prompt without tools (EAPO)."
        },
    )
    tool_free_correction: bool = field(
        default=True,
        metadata={"help": "Weight rollouts for having been sampled under two prompts."},
    )
    efficiency_normalize: Normalize = field(
        default="qualifying",
        metadata={"help": "Average the efficiency loss over 'qualifying' rollouts or the 'group'."},
    )
    correct_above: float = field(
        default=0.5, metadata={"help": "A rollout is correct if its accuracy reward exceeds this."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {get_args(Variant)}, not {self.variant!r}")
        if not 0 <= self.tool_free < (self.num_generations or 1):
            raise ValueError(
                f"tool_free must leave a group of {self.num_generations} at least one rollout with "
                f"tools, and is {self.tool_free}"
            )
        if self.tool_free and self.top_p < 1:
            raise ValueError(
                f"tool_free weighs whole likelihoods under two prompts, and top_p={self.top_p} "
                "samples from a part of each: set top_p=1"
            )
        if self.multi_objective_aggregation != "sum_then_normalize" and self.variant in (
            "coupled",
            "eapo",
        ):
            raise ValueError(
                f"variant {self.variant!r} makes one reward of all and normalises that: "
                f"multi_objective_aggregation cannot be {self.multi_objective_aggregation!r}"
            )
        if self.efficiency_normalize not in ("qualifying", "group"):
            raise ValueError(
                "efficiency_normalize must be 'qualifying' or 'group', "
                f"not {self.efficiency_normalize!r}"
            )
        if self.loss_type in UNSHARED and self.efficiency_weight:
            raise ValueError(f"loss_type {self.loss_type!r} has no clipped surrogate to share")
        if self.efficiency_weight and (
            self.top_entropy_quantile < 1 or self.off_policy_mask_threshold is not None
        ):
            raise ValueError(
                "top_entropy_quantile and off_policy_mask_threshold would leave tokens out of one "
                "channel only: set w_tool=0 to use them"
            )

    @property
    def efficiency_weight(self) -> float:
        """w_tool, or 0 where the variant has no efficiency channel."""
        return self.w_tool if self.variant == "hdpo" else 0.0

    @property
    def aggregation(self) -> Aggregation:
        """How the efficiency loss is averaged, following `loss_type`."""
        return "rollout" if self.loss_type == "grpo" else "token"
