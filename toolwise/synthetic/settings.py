"""Settings of the built-in environment and model, apart from the code: profiles load fast."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class SignboardSettings(BaseModel):
    """How much of the environment to make."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trajectories: PositiveInt = 3600
    """Raw supervised trajectories, replay under prompts without tools included."""
    rl_tasks: PositiveInt = 960
    benchmark_items: PositiveInt = 600
    corpus_distractors: PositiveInt = 200


class BaseStageSettings(BaseModel):
    """How the base model is taught.

    Args:
        steps: optimizer steps.
        batch_size: lessons of a step, over all processes.
        processes: how many of this machine share a step.
        learning_rate: peak.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = 900
    batch_size: PositiveInt = 40
    processes: PositiveInt = 1
    learning_rate: PositiveFloat = 2e-3
