"""What a curation of prompts for reinforcement learning can be told."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from toolwise.agent.vllm_process import VLLMSettings
from toolwise.curation.deduplication import DeduplicationSettings
from toolwise.curation.judge import JudgeSettings
from toolwise.curation.mixture import METIS
from toolwise.tools.sandbox.contract import Isolation
from toolwise.tools.search.settings import SearchSettings

FilterName = Literal["image", "question", "ability", "benchmarks", "ambiguity", "rollouts"]
FILTERS: tuple[FilterName, ...] = get_args(FilterName)
"""In the order they run, whatever the order they are asked for in."""


def _mixture_unless_numbers(settings: dict[str, Any]) -> dict[str, float] | None:
    return None if settings.get("prompts") else METIS


class RlCurationSettings(BaseModel):
    """Which prompts to keep for reinforcement learning.

    Args:
        filters: which to run; all of them by default.
        generations: G rollouts of the cold-start model per prompt, at temperature 1.
        keep_rule: `either` keeps a prompt when the accuracy or the efficiency reward varies
            within its rollouts; `pass_rate` only when some are right and some wrong (the paper's).
        prompts: how many to keep of each ability; rollouts stop once there are enough.
        mixture: shares of the result by ability, where `prompts` is not given; the largest result
            that has them is kept, and abilities without a share are dropped. By default the
            paper's 45% perception, 36% search, 19% math; null keeps all that qualify.
        rollouts: how many to spend at most.
        batch_size: conversations per generation.
        max_tokens: limit per turn.
        max_turns: assistant turns per rollout.
        isolation: lowest sandbox level accepted.
        search: the search tools; as the profile has it.
        vllm: the model answers by vLLM; as the profile has it.
        deduplicate: drops what a benchmark asks; by default nothing is compared.
        judge: a model that judges whether questions are ambiguous, after the rules.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: tuple[FilterName, ...] = FILTERS
    generations: int = Field(8, ge=2)
    keep_rule: Literal["either", "pass_rate"] = "either"
    prompts: int | None = Field(None, ge=1)
    mixture: dict[str, PositiveFloat] | None = Field(default_factory=_mixture_unless_numbers)
    rollouts: int | None = Field(None, ge=1)
    batch_size: int = Field(256, ge=1)
    max_tokens: int = Field(512, ge=1)
    max_turns: int = Field(4, ge=1)
    isolation: Isolation = Isolation.BUBBLEWRAP
    search: SearchSettings | None = None
    vllm: VLLMSettings | None = None
    deduplicate: DeduplicationSettings | None = None
    judge: JudgeSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.filters:
            raise ValueError(f"`filters` names none; there are: {', '.join(FILTERS)}")
        if self.prompts and self.mixture:
            raise ValueError("give either `prompts` or `mixture`")
        return self
