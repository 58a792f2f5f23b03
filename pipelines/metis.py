"""The pipeline: curate, cold start, HDPO, measure, promote, serve."""

# Kubeflow's decorators are typed as if they gave back the function; called in a pipeline, it takes
# channels for artifacts, fills in the outputs, and returns a task.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_channel import PipelineChannel

from components.answer.component import answer
from components.base_model.component import base_model
from components.curate_rl.component import curate_rl
from components.curate_sft.component import curate_sft
from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.finish.component import finish
from components.gather.component import gather
from components.prepare_data.component import prepare_data
from components.promote.component import promote
from components.report.component import report
from components.train_hdpo.component import train_hdpo
from components.train_sft.component import train_sft
from pipelines.placement import Placement
from pipelines.plan import Plan
from toolwise.profile import benchmarks_of
from toolwise.training.settings import HdpoSettings

# Annotations are quoted one by one: Kubeflow reads those of a pipeline function as they stand.
if TYPE_CHECKING:
    from toolwise.profile import Profile

STEPS = (
    "prepare-data",
    "base-model",
    "curate-sft",
    "train-sft",
    "curate-rl",
    "train-hdpo",
    "evaluate base",
    "evaluate sft",
    "evaluate hdpo",
    "promote",
    "deploy",
    "report",
)
"""The steps as they report themselves, in the order a person thinks of them."""

STAGES = ("base", "sft", "hdpo")

EVALUATING = {"evaluate": "evaluate", "gather": "evaluate", "answer": "answer"}
"""Kubeflow's names of the tasks that measure a checkpoint, and the steps they are to people."""


def labels(steps: Mapping[str, str], stages: Sequence[str]) -> dict[str, str]:
    """What people call the tasks that there are one of for each stage, by Kubeflow's names."""
    return {
        f"{task}-{number}" if number > 1 else task: f"{step} {stage}"
        for task, step in steps.items()
        for number, stage in enumerate(stages, 1)
    }


LABELS = labels(EVALUATING, STAGES)
"""Kubeflow's names of the tasks that are called something else in `STEPS`."""


class Start(NamedTuple):
    """What training by reinforcement starts from."""

    data: Mapping[str, PipelineChannel]
    base_model: PipelineChannel
    sft_curation: PipelineChannel
    sft_model: PipelineChannel
    rl_curation: PipelineChannel


def metis(profile: "Profile") -> GraphComponent:
    """The pipeline of `profile`; its one parameter is the seed.

    Every step gets its own section of the profile, so that a change in one section runs again
    what depends on it and nothing else.
    """

    @dsl.pipeline(
        name=f"metis-{profile.name}",
        description="Trains a model to call tools only when it must, and proves and serves it.",
    )
    def pipeline(seed: int = profile.seed):
        """The pipeline of one profile.

        Args:
            seed: seed of every step.
        """
        placement = Placement(profile)
        with dsl.ExitHandler(placement.light(finish(last="report"), cached=False), name="run"):
            _steps(placement, profile, seed)

    return pipeline


def cold_start(placement: Placement, profile: "Profile", seed: int) -> Start:
    """The steps up to the cold start and the prompts that its model learns from."""
    light, heavy, answering = placement.light, placement.heavy, placement.answering
    data = light(prepare_data(settings=profile.data.model_dump_json(), seed=seed)).outputs
    made = heavy if profile.base.train else light
    base = made(base_model(settings=profile.base.model_dump_json(), seed=seed)).outputs["model"]
    sft_curation = answering(
        curate_sft(
            settings=profile.curate_sft.model_dump_json(),
            seed=seed,
            model=base,
            trajectories=data["trajectories"],
            corpus=data["corpus"],
        ),
        profile.curate_sft.vllm,
    ).outputs["curated"]
    sft_model = placement.training(
        train_sft(
            settings=profile.sft.model_dump_json(), seed=seed, model=base, curated=sft_curation
        )
    ).outputs["checkpoint"]
    rl_curation = answering(
        curate_rl(
            settings=profile.curate_rl.model_dump_json(),
            seed=seed,
            model=sft_model,
            tasks=data["tasks"],
            corpus=data["corpus"],
            benchmark=data["benchmark"],
        ),
        profile.curate_rl.vllm,
    ).outputs["curated"]
    return Start(data, base, sft_curation, sft_model, rl_curation)


def reinforced(
    placement: Placement, settings: HdpoSettings, seed: int, start: Start
) -> PipelineChannel:
    """The checkpoint that HDPO makes of the cold start's."""
    return placement.training(
        train_hdpo(
            settings=settings.model_dump_json(),
            seed=seed,
            model=start.sft_model,
            curated=start.rl_curation,
            corpus=start.data["corpus"],
        )
    ).outputs["checkpoint"]


def _steps(placement: Placement, profile: "Profile", seed: int) -> None:
    light = placement.light
    start = cold_start(placement, profile, seed)
    corpus, benchmark = start.data["corpus"], start.data["benchmark"]
    hdpo_model = reinforced(placement, profile.hdpo, seed, start)
    evaluations = {
        stage: evaluation(placement, profile, seed, stage, model, start.data)
        for stage, model in zip(
            STAGES, (start.base_model, start.sft_model, hdpo_model), strict=True
        )
    }
    gate = light(
        promote(
            settings=profile.promote.model_dump_json(),
            seed=seed,
            model=hdpo_model,
            challenger=evaluations["hdpo"],
            baseline=evaluations["sft"],
        ),
        # There may be another champion since.
        cached=False,
    )
    evidence = {
        "profile": profile.name,
        "seed": seed,
        "data": start.data["trajectories"],
        "base_model": start.base_model,
        "sft_curation": start.sft_curation,
        "sft_model": start.sft_model,
        "rl_curation": start.rl_curation,
        "hdpo_model": hdpo_model,
        "base_evaluation": evaluations["base"],
        "sft_evaluation": evaluations["sft"],
        "hdpo_evaluation": evaluations["hdpo"],
        "decision": gate.outputs["decision"],
    }
    with dsl.If(gate.outputs["Output"] == True, name="promoted"):  # noqa: E712 - a channel
        endpoint = placement.deploying(
            deploy(
                settings=profile.deployment.model_dump_json(),
                seed=seed,
                model=hdpo_model,
                evaluation=evaluations["hdpo"],
                benchmark=benchmark,
                corpus=corpus,
            )
        )
        light(report(**evidence, endpoint=endpoint.outputs["endpoint"]), cached=False)
    with dsl.Else(name="rejected"):
        light(report(**evidence), cached=False)


def evaluation(
    placement: Placement,
    profile: "Profile",
    seed: int,
    stage: str,
    model: PipelineChannel,
    data: Mapping[str, PipelineChannel],
) -> PipelineChannel:
    """A checkpoint's evaluation: in one step, or on a cluster each benchmark on its own."""
    benchmark, corpus = data["benchmark"], data["corpus"]
    asked = {"settings": profile.evaluate.model_dump_json(), "seed": seed, "stage": stage}
    vllm, processes = profile.evaluate.vllm, profile.evaluate.processes
    shards = _benchmarks(profile)
    if not shards:
        whole = evaluate(**asked, model=model, benchmark=benchmark, corpus=corpus)
        return placement.answering(whole, vllm, processes).outputs["evaluation"]
    with dsl.ParallelFor(shards, name=f"benchmarks {stage}") as source:
        share = placement.answering(
            answer(**asked, source=source, model=model, benchmark=benchmark, corpus=corpus),
            vllm,
            processes,
        )
    gathered = gather(
        **asked, model=model, benchmark=benchmark, answers=dsl.Collected(share.outputs["answers"])
    )
    return placement.light(gathered).outputs["evaluation"]


def step_names(profile: "Profile") -> tuple[str, ...]:
    """The steps of `profile`, as `STEPS` names them, in their order."""
    first = STEPS.index(f"evaluate {STAGES[0]}")
    return (*STEPS[:first], *answer_steps(profile, STAGES), *STEPS[first:])


def answer_steps(profile: "Profile", stages: Sequence[str]) -> list[str]:
    """The steps that answer benchmarks side by side; none where one step answers all."""
    return [f"answer {stage}" for stage in stages] if _benchmarks(profile) else []


def _benchmarks(profile: "Profile") -> list[str]:
    """The benchmarks that are answered side by side; none where one step answers all."""
    published = profile.data.published
    if profile.kubeflow is None or published is None:
        return []
    names = set(benchmarks_of(published))
    several = len(names) > 1 and None not in names
    return sorted(name for name in names if name) if several else []


def plan(profile: "Profile") -> Plan:
    """The pipeline of `profile`, as it is submitted."""
    return Plan(f"metis-{profile.name}", metis(profile), step_names(profile), LABELS)


def compile_pipeline(profile: "Profile", path: Path) -> None:
    """Write the pipeline of `profile` as IR YAML; see `Plan.write`."""
    plan(profile).write(path)
