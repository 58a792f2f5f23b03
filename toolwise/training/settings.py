"""Settings of the training steps, apart from the code so that reading a profile stays quick."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from toolwise.tools.sandbox.contract import Isolation
from toolwise.tools.search.settings import SearchSettings
from toolwise.training.hardware import HardwareSettings

_KEPT_ADAPTERS = "keep_checkpoints is 1 with lora: adapters are merged at the end only"


class LoraSettings(BaseModel):
    """Low-rank adapters on the language model's linear layers; the rest stays as it is.

    Args:
        rank: of the two matrices beside each layer's.
        alpha: their product counts alpha / rank.
        dropout: on what goes into them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)


class SftSettings(BaseModel):
    """How the cold start is trained.

    Args:
        steps: optimizer steps.
        processes: how many of this machine share a step, each with a GPU of its own where there is
            `hardware`.
        batch_size: trajectories of a step, over all processes.
        accumulate: parts a process works its share off in, to save memory.
        learning_rate: peak of a cosine after the warm-up.
        warmup_steps: linear warm-up.
        freeze_vision: train the language model only; what the encoder sees stays as it was.
        lora: train adapters instead of the weights.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: checkpoints that are kept and logged when the training has ended: the
            final one and the newest before it. Adapters are merged at the end only, so with `lora`
            it is 1.
        search: the search tools the prompts offer; as the profile has it.
        hardware: where it runs; as the profile has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = 240
    processes: PositiveInt = 1
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 20
    freeze_vision: bool = False
    lora: LoraSettings | None = None
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 1
    search: SearchSettings | None = None
    hardware: HardwareSettings | None = None

    @model_validator(mode="after")
    def _keeps_whole_weights(self) -> Self:
        if self.lora is not None and self.keep_checkpoints > 1:
            raise ValueError(_KEPT_ADAPTERS)
        return self


class HdpoSettings(BaseModel):
    """How HDPO is run.

    Args:
        steps: optimizer steps, each on rollouts of its own.
        processes: how many of this machine share a step, rollouts included.
        prompts_per_step: P, over all processes.
        num_generations: G, rollouts per prompt.
        accumulate: parts a process works its share off in, to save memory.
        learning_rate: peak, falling linearly to 0 after the warm-up.
        warmup_steps: linear warm-up.
        freeze_vision: train the language model only.
        lora: train adapters instead of the weights.
        variant: `hdpo`; `grpo` (no efficiency channel); `coupled` (one channel, the reward is
            accuracy + alpha · efficiency); `eapo` (one channel, EAPO's difficulty-aware reward,
            whose beta is alpha).
        w_acc: weight of the accuracy channel.
        w_tool: weight of the efficiency channel.
        alpha: strength of efficiency in a reward of one channel.
        difficulty_aware: weight efficiency by the share of right rollouts in the group (EAPO).
        tool_free: rollouts of each group sampled under the prompt without tools (EAPO).
        tool_free_correction: weight rollouts for having been sampled under two prompts.
        aggregation: losses averaged over tokens, or over each rollout and then over rollouts.
        efficiency_normalize: what the efficiency loss is averaged over.
        clip_low: the ratio is clipped below at 1 − clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        dual_clip: bound on the loss of negative advantages, in units of |A|; None for no bound.
        temperature: of the rollouts.
        max_tokens: limit of one turn.
        max_turns: assistant turns of a rollout.
        isolation: lowest isolation accepted for the python sandbox.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: checkpoints that are kept and logged when the training has ended: the
            final one and the newest before it. Adapters are merged at the end only, so with `lora`
            it is 1.
        search: the search tools; as the profile has it.
        hardware: where it runs; as the profile has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = 100
    processes: PositiveInt = 1
    prompts_per_step: PositiveInt = 24
    num_generations: PositiveInt = 8
    accumulate: PositiveInt = 1
    learning_rate: PositiveFloat = 5e-5
    warmup_steps: NonNegativeInt = 5
    freeze_vision: bool = False
    lora: LoraSettings | None = None
    variant: Literal["hdpo", "grpo", "coupled", "eapo"] = "hdpo"
    w_acc: NonNegativeFloat = 1.0
    w_tool: NonNegativeFloat = 0.15
    alpha: NonNegativeFloat = 0.15
    difficulty_aware: bool = False
    tool_free: NonNegativeInt = 0
    tool_free_correction: bool = True
    aggregation: Literal["token", "rollout"] = "token"
    efficiency_normalize: Literal["qualifying", "group"] = "qualifying"
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.28
    dual_clip: PositiveFloat | None = 3.0
    temperature: PositiveFloat = 1.0
    max_tokens: PositiveInt = 64
    max_turns: PositiveInt = 4
    isolation: Isolation = Isolation.BUBBLEWRAP
    checkpoint_every: PositiveInt = 25
    keep_checkpoints: PositiveInt = 1
    search: SearchSettings | None = None
    hardware: HardwareSettings | None = None

    @model_validator(mode="after")
    def _keeps_whole_weights(self) -> Self:
        if self.lora is not None and self.keep_checkpoints > 1:
            raise ValueError(_KEPT_ADAPTERS)
        return self
