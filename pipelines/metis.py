"""The pipeline: curate, cold start, HDPO, measure, promote, serve."""

# Kubeflow's decorators are typed as if they gave back the function; called in a pipeline, it takes
# channels for artifacts, fills in the outputs, and returns a task.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false

from pathlib import Path
from typing import TYPE_CHECKING

from kfp import compiler, dsl, kubernetes
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_task import PipelineTask

from components.base_model.component import base_model
from components.curate_rl.component import curate_rl
from components.curate_sft.component import curate_sft
from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.finish.component import finish
from components.prepare_data.component import prepare_data
from components.promote.component import promote
from components.report.component import report
from components.train_hdpo.component import train_hdpo
from components.train_sft.component import train_sft
from toolwise.steps import RUN_VARIABLE
from toolwise.training.launcher.cluster import CLUSTER_VARIABLE, Cluster

# Annotations are quoted one by one: Kubeflow reads those of a pipeline function as they stand.
if TYPE_CHECKING:
    from toolwise.profile import KubeflowSettings, Profile

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

LABELS = {
    "evaluate": "evaluate base",
    "evaluate-2": "evaluate sft",
    "evaluate-3": "evaluate hdpo",
}
"""Kubeflow's names of the tasks that are called something else in `STEPS`."""


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
        closing = _place(finish(), profile)
        closing.set_caching_options(False)
        with dsl.ExitHandler(closing, name="run"):
            _steps(profile, seed)

    return pipeline


def _steps(profile: "Profile", seed: int) -> None:
    def light(task: PipelineTask) -> PipelineTask:
        return _place(task, profile)

    def heavy(task: PipelineTask) -> PipelineTask:
        return _with_accelerators(_place(task, profile), profile.kubeflow)

    def training(task: PipelineTask) -> PipelineTask:
        if profile.kubeflow is None or profile.kubeflow.exchange is None:
            return heavy(task)
        return _with_trainjob(light(task), profile)

    data = light(prepare_data(settings=profile.data.model_dump_json(), seed=seed)).outputs
    corpus, benchmark = data["corpus"], data["benchmark"]
    base = heavy(base_model(settings=profile.base.model_dump_json(), seed=seed)).outputs["model"]
    sft_curation = heavy(
        curate_sft(
            settings=profile.curate_sft.model_dump_json(),
            seed=seed,
            model=base,
            trajectories=data["trajectories"],
            corpus=corpus,
        )
    ).outputs["curated"]
    sft_model = training(
        train_sft(
            settings=profile.sft.model_dump_json(), seed=seed, model=base, curated=sft_curation
        )
    ).outputs["checkpoint"]
    rl_curation = heavy(
        curate_rl(
            settings=profile.curate_rl.model_dump_json(),
            seed=seed,
            model=sft_model,
            tasks=data["tasks"],
            corpus=corpus,
            benchmark=benchmark,
        )
    ).outputs["curated"]
    hdpo_model = training(
        train_hdpo(
            settings=profile.hdpo.model_dump_json(),
            seed=seed,
            model=sft_model,
            curated=rl_curation,
            corpus=corpus,
        )
    ).outputs["checkpoint"]
    evaluations = {
        stage: heavy(
            evaluate(
                settings=profile.evaluate.model_dump_json(),
                seed=seed,
                stage=stage,
                model=model,
                benchmark=benchmark,
                corpus=corpus,
            )
        ).outputs["evaluation"]
        for stage, model in (("base", base), ("sft", sft_model), ("hdpo", hdpo_model))
    }
    gate = light(
        promote(
            settings=profile.promote.model_dump_json(),
            seed=seed,
            model=hdpo_model,
            challenger=evaluations["hdpo"],
            baseline=evaluations["sft"],
        )
    )
    evidence = {
        "profile": profile.name,
        "seed": seed,
        "data": data["trajectories"],
        "base_model": base,
        "sft_curation": sft_curation,
        "sft_model": sft_model,
        "rl_curation": rl_curation,
        "hdpo_model": hdpo_model,
        "base_evaluation": evaluations["base"],
        "sft_evaluation": evaluations["sft"],
        "hdpo_evaluation": evaluations["hdpo"],
        "decision": gate.outputs["decision"],
    }
    with dsl.If(gate.outputs["Output"] == True, name="promoted"):  # noqa: E712 - a channel
        endpoint = light(
            deploy(
                settings=profile.deployment.model_dump_json(),
                seed=seed,
                model=hdpo_model,
                evaluation=evaluations["hdpo"],
                benchmark=benchmark,
                corpus=corpus,
            )
        )
        endpoint.set_caching_options(False)
        summary = light(report(**evidence, endpoint=endpoint.outputs["endpoint"]))
        summary.set_caching_options(False)
    with dsl.Else(name="rejected"):
        light(report(**evidence)).set_caching_options(False)


def _place(task: PipelineTask, profile: "Profile") -> PipelineTask:
    """Image and environment of a pod; nothing where the profile runs locally."""
    kubeflow = profile.kubeflow
    if kubeflow is None:
        return task
    task.set_container_image(kubeflow.image)
    task.set_env_variable("MLFLOW_TRACKING_URI", kubeflow.tracking_uri)
    task.set_env_variable("MLFLOW_EXPERIMENT_NAME", profile.name)
    # From the pod's label rather than a parameter: a parameter would defeat caching.
    kubernetes.use_field_path_as_env(task, RUN_VARIABLE, "metadata.labels['pipeline/runid']")
    kubernetes.use_secret_as_env(task, kubeflow.secret, {key: key for key in _secret_keys(profile)})
    return task


def _secret_keys(profile: "Profile") -> list[str]:
    keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"]
    return keys + list(profile.search.keys if profile.search else ())


def _with_trainjob(task: PipelineTask, profile: "Profile") -> PipelineTask:
    """Tell a training step of the cluster: its pod starts a `TrainJob` there and follows it."""
    kubeflow = profile.kubeflow
    assert kubeflow is not None
    assert kubeflow.exchange is not None
    cluster = Cluster(
        image=kubeflow.image,
        exchange=kubeflow.exchange.rstrip("/"),
        accelerator=kubeflow.accelerator,
        cpu=kubeflow.cpu,
        memory=kubeflow.memory,
        secret=kubeflow.secret,
        secret_keys=tuple(_secret_keys(profile)),
        vllm_image=kubeflow.vllm_image,
    )
    task.set_env_variable(CLUSTER_VARIABLE, cluster.model_dump_json())
    return task


def _with_accelerators(task: PipelineTask, kubeflow: "KubeflowSettings | None") -> PipelineTask:
    """GPUs, cores and memory for a step that runs a model."""
    if kubeflow is None:
        return task
    task.set_cpu_limit(kubeflow.cpu).set_memory_limit(kubeflow.memory)
    if kubeflow.accelerators:
        task.set_accelerator_type(kubeflow.accelerator)
        task.set_accelerator_limit(kubeflow.accelerators)
    return task


def compile_pipeline(profile: "Profile", path: Path) -> None:
    """Write the pipeline of `profile` as IR YAML; the same profile gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(metis(profile), str(path))
