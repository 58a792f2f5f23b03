"""The ablation: one cold start, then HDPO's variants side by side, each trained and measured.

`toolwise submit --variants variants.yaml` runs it. The variants file names changes to the profile's
`hdpo` section:

    grpo: {variant: grpo}
    w_tool 0.3: {w_tool: 0.3}
"""

# As in pipelines/metis.py: Kubeflow's decorators are typed as if they gave back the function.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from kfp import dsl
from pydantic import TypeAdapter, ValidationError

from components.finish.component import finish
from pipelines.metis import (
    EVALUATING,
    STEPS,
    answer_steps,
    cold_start,
    evaluation,
    labels,
    reinforced,
)
from pipelines.placement import Placement
from pipelines.plan import Plan
from toolwise.errors import InputError
from toolwise.training.settings import HdpoSettings

if TYPE_CHECKING:
    from toolwise.profile import Profile

Variants = Mapping[str, dict[str, Any]]
"""Name → changes to the profile's `hdpo` section."""

_TRAINING = "train-hdpo"


def plan(profile: "Profile", variants: Variants) -> Plan:
    """The pipeline of `profile` up to the cold start, and each variant from there.

    Raises:
        InputError: there is no variant, or its settings are not valid; names it.
    """
    settings = {name: _settings(profile, name, changes) for name, changes in variants.items()}
    if not settings:
        raise InputError("the file names no variant")

    @dsl.pipeline(
        name=f"ablation-{profile.name}",
        description="Trains and measures variants of HDPO from one cold start.",
    )
    def pipeline(seed: int = profile.seed):
        """The ablation of one profile.

        Args:
            seed: seed of every step.
        """
        placement = Placement(profile)
        # No step is done in every run: that none failed has to do.
        with dsl.ExitHandler(placement.light(finish(last=""), cached=False), name="run"):
            start = cold_start(placement, profile, seed)
            for name, changed in settings.items():
                trained = reinforced(placement, changed, seed, start)
                evaluation(placement, profile, seed, name, trained, start.data)

    stages = list(settings)
    steps = (
        *STEPS[: STEPS.index(_TRAINING)],
        *(f"{_TRAINING} {name}" for name in stages),
        *answer_steps(profile, stages),
        *(f"evaluate {name}" for name in stages),
    )
    names = labels({_TRAINING: _TRAINING, **EVALUATING}, stages)
    return Plan(f"ablation-{profile.name}", pipeline, steps, names)


def read_variants(path: Path) -> Variants:
    """The variants in a YAML file; raises `InputError` where it is not one."""
    try:
        return TypeAdapter(dict[str, dict[str, Any]]).validate_python(
            yaml.safe_load(path.read_text())
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"{path} is not a file of variants, name: {{setting: value}}: {error}"
        ) from None


def _settings(profile: "Profile", name: str, changes: dict[str, Any]) -> HdpoSettings:
    try:
        return HdpoSettings(**{**profile.hdpo.model_dump(), **changes})
    except ValidationError as error:
        raise InputError(f"variant {name!r}: {error}") from None
