"""The ablation: one cold start, then HDPO's variants side by side, each trained and measured.

    python -m pipelines.ablation qwen3-vl-8b variants.yaml ablation.yaml

writes the pipeline for Kubeflow. The variants file names changes to the profile's `hdpo` section:

    grpo: {variant: grpo}
    w_tool 0.3: {w_tool: 0.3}
"""

# As in pipelines/metis.py: Kubeflow's decorators are typed as if they gave back the function.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from kfp import compiler, dsl
from kfp.dsl.graph_component import GraphComponent
from pydantic import TypeAdapter, ValidationError

from components.base_model.component import base_model
from components.curate_rl.component import curate_rl
from components.curate_sft.component import curate_sft
from components.evaluate.component import evaluate
from components.prepare_data.component import prepare_data
from components.train_hdpo.component import train_hdpo
from components.train_sft.component import train_sft
from pipelines.placement import Placement
from toolwise.errors import InputError
from toolwise.training.settings import HdpoSettings

if TYPE_CHECKING:
    from toolwise.profile import Profile

Variants = Mapping[str, dict[str, Any]]
"""Name → changes to the profile's `hdpo` section."""


def ablation(profile: "Profile", variants: Variants) -> GraphComponent:
    """The pipeline of `profile` up to the cold start, and each variant from there.

    Raises:
        InputError: a variant's settings are not valid; names it.
    """
    items = [
        {"stage": name, "settings": _settings(profile, name, changes).model_dump_json()}
        for name, changes in variants.items()
    ]
    if not items:
        raise InputError("the file names no variant")

    placement = Placement(profile)
    heavy, training = placement.heavy, placement.training

    @dsl.pipeline(
        name=f"ablation-{profile.name}",
        description="Trains and measures variants of HDPO from one cold start.",
    )
    def pipeline(seed: int = profile.seed):
        """The ablation of one profile.

        Args:
            seed: seed of every step.
        """
        data = placement.light(
            prepare_data(settings=profile.data.model_dump_json(), seed=seed)
        ).outputs
        shared = {"seed": seed, "corpus": data["corpus"]}
        base = heavy(base_model(settings=profile.base.model_dump_json(), seed=seed)).outputs[
            "model"
        ]
        trajectories = placement.answering(
            curate_sft(
                settings=profile.curate_sft.model_dump_json(),
                model=base,
                trajectories=data["trajectories"],
                **shared,
            )
        ).outputs["curated"]
        start = training(
            train_sft(
                settings=profile.sft.model_dump_json(), seed=seed, model=base, curated=trajectories
            )
        ).outputs["checkpoint"]
        prompts = placement.answering(
            curate_rl(
                settings=profile.curate_rl.model_dump_json(),
                model=start,
                tasks=data["tasks"],
                benchmark=data["benchmark"],
                **shared,
            )
        ).outputs["curated"]
        with dsl.ParallelFor(items, name="variants") as item:
            variant: Any = item
            trained = training(
                train_hdpo(settings=variant.settings, model=start, curated=prompts, **shared)
            ).outputs["checkpoint"]
            placement.answering(
                evaluate(
                    settings=profile.evaluate.model_dump_json(),
                    stage=variant.stage,
                    model=trained,
                    benchmark=data["benchmark"],
                    **shared,
                ),
                profile.evaluate.processes,
            )

    return pipeline


def read_variants(path: Path) -> Variants:
    """The variants in a YAML file; raises `InputError` where it is not one."""
    try:
        return TypeAdapter(dict[str, dict[str, Any]]).validate_python(
            yaml.safe_load(path.read_text())
        )
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"{path} is not a file of variants, name: {{setting: value}}: {error}"
        ) from None


def _settings(profile: "Profile", name: str, changes: dict[str, Any]) -> HdpoSettings:
    try:
        return HdpoSettings(**{**profile.hdpo.model_dump(), **changes})
    except ValidationError as error:
        raise InputError(f"variant {name!r}: {error}") from None


if __name__ == "__main__":
    from toolwise.profile import load_profile

    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        built = ablation(load_profile(sys.argv[1]), read_variants(Path(sys.argv[2])))
    except InputError as problem:
        sys.exit(str(problem))
    compiler.Compiler().compile(built, sys.argv[3])
