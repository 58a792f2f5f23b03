"""How large the study is: what decides how long it takes, and nothing else."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

WORK = Path(__file__).parents[2] / "runs" / "bench" / "hdpo"
"""Checkpoints and finished arms; git does not track it."""


class Scale(BaseModel):
    """Size of the study.

    Args:
        seeds: 0 … seeds − 1, of the order of the prompts and of the rollouts.
        steps: optimizer steps of an arm that is not `longer`.
        prompts_per_step: prompts of a step.
        num_generations: rollouts of each.
        prompts: that are trained on.
        items: of the benchmark that are measured.
        early: steps of the cold start of that name, few enough that math is half learned.
        reflex: steps of the other cold start.
        only: regular expression that `regime: arm` has to match.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: PositiveInt = 3
    steps: PositiveInt = 28
    prompts_per_step: PositiveInt = 4
    num_generations: int = Field(8, ge=2)
    prompts: PositiveInt = 144
    items: PositiveInt = 120
    early: PositiveInt = 300
    reflex: PositiveInt = 400
    only: str = ""

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.num_generations
