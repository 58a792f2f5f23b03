"""Where a pipeline's tasks run: image, resources, environment, secrets, retries and caching."""

from __future__ import annotations

from decimal import Decimal

from kfp import kubernetes
from kfp.dsl.pipeline_task import PipelineTask
from kubernetes.utils import parse_quantity

from toolwise.agent.vllm_process import VLLMSettings
from toolwise.kubernetes.pod_security import USER
from toolwise.profile import KubeflowSettings, Profile
from toolwise.serving.settings import KEY_VARIABLE
from toolwise.steps import RUN_VARIABLE
from toolwise.storage import S3_KEYS, S3_REGION
from toolwise.tools.sandbox import SANDBOX_VARIABLE
from toolwise.training.launcher.cluster import CLUSTER_VARIABLE, Cluster

LIGHT_CPU, LIGHT_MEMORY = "2", "8Gi"
"""Limits of a step that runs no model."""

OPTIONAL_KEYS = ("HF_TOKEN", S3_REGION)
"""Keys of the secret that are used where they are there."""


class Placement:
    """Places the tasks of a profile's pipeline; where that runs locally, only caching is set.

    Args:
        profile: says what the pods need.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def light(
        self, task: PipelineTask, *, cached: bool = True, retried: bool = True
    ) -> PipelineTask:
        """A step that runs no model.

        Args:
            task: it.
            cached: its inputs define its outputs, so that an earlier run's will do.
            retried: a fault of it may pass.
        """
        kubeflow = self._profile.kubeflow
        task.set_caching_options(cached)
        if kubeflow is None:
            return task
        self._prepare(task, kubeflow, kubeflow.operator_image)
        _limit(task, LIGHT_CPU, LIGHT_MEMORY)
        # A pod may be evicted, and an endpoint be away for a while.
        if retried:
            _retry(task)
        return task

    def deploying(self, task: PipelineTask) -> PipelineTask:
        """The deployment, which asks the endpoint with a key where that wants one."""
        # What fails has been tried for long, and the endpoint before it is back.
        self.light(task, cached=False, retried=False)
        kubeflow = self._profile.kubeflow
        keys = {key: key for key in endpoint_keys(self._profile)}
        if kubeflow is not None and keys:
            kubernetes.use_secret_as_env(task, kubeflow.secret, keys)
        return task

    def heavy(self, task: PipelineTask) -> PipelineTask:
        """A step that runs a model, on all the GPUs the profile gives such a step."""
        kubeflow = self._profile.kubeflow
        most = 0 if kubeflow is None else kubeflow.accelerators
        return self._with_model(task, most)

    def answering(
        self, task: PipelineTask, vllm: VLLMSettings | None, processes: int = 1
    ) -> PipelineTask:
        """A step in which a model answers, with its share of the rest.

        It gets the GPUs of `vllm`, or else one for each process.
        """
        kubeflow = self._profile.kubeflow
        most = 0 if kubeflow is None else kubeflow.accelerators
        return self._with_model(task, min(most, vllm.gpus if vllm else processes))

    def _with_model(self, task: PipelineTask, accelerators: int) -> PipelineTask:
        kubeflow = self._profile.kubeflow
        task.set_caching_options(True)
        if kubeflow is None:
            return task
        self._prepare(task, kubeflow, kubeflow.image)
        cpu, memory = kubeflow.cpu, kubeflow.memory
        if accelerators < kubeflow.accelerators:
            share = Decimal(accelerators) / kubeflow.accelerators
            cpu = f"{int(parse_quantity(cpu) * share * 1000)}m"
            memory = f"{int(parse_quantity(memory) * share) >> 20}Mi"
        _limit(task, cpu, memory)
        _retry(task)
        kubernetes.empty_dir_mount(
            task, "shared-memory", "/dev/shm", medium="Memory", size_limit=kubeflow.shared_memory
        )
        if accelerators:
            task.set_accelerator_type(kubeflow.accelerator)
            task.set_accelerator_limit(accelerators)
        for label, value in kubeflow.node_selector.items():
            kubernetes.add_node_selector(task, label, value)
        for toleration in kubeflow.tolerations:
            kubernetes.add_toleration(task, **toleration.model_dump())
        return task

    def training(self, task: PipelineTask) -> PipelineTask:
        """A training step: its pod starts a `TrainJob` and follows it, or trains by itself."""
        kubeflow = self._profile.kubeflow
        if kubeflow is None or kubeflow.exchange is None:
            return self.heavy(task)
        cluster = Cluster(
            image=kubeflow.image,
            exchange=kubeflow.exchange.rstrip("/"),
            accelerator=kubeflow.accelerator,
            cpu=kubeflow.cpu,
            memory=kubeflow.memory,
            secret=kubeflow.secret,
            secret_keys=secret_keys(self._profile),
            image_pull_secret=kubeflow.image_pull_secret,
            node_selector=kubeflow.node_selector,
            tolerations=kubeflow.tolerations,
            vllm_image=kubeflow.vllm_image,
            sandbox=kubeflow.sandbox,
        )
        self.light(task)
        task.set_env_variable(CLUSTER_VARIABLE, cluster.model_dump_json())
        return task

    def _prepare(self, task: PipelineTask, kubeflow: KubeflowSettings, image: str) -> None:
        """What the pod of every step has."""
        task.set_container_image(image)
        environment = {
            "MLFLOW_TRACKING_URI": kubeflow.tracking_uri,
            "MLFLOW_EXPERIMENT_NAME": self._profile.name,
            # Everything a step writes lies on the volume at /tmp, its caches included.
            "HOME": "/tmp",
        }
        if kubeflow.sandbox:
            environment[SANDBOX_VARIABLE] = kubeflow.sandbox
        for name, value in environment.items():
            task.set_env_variable(name, value)
        # From the pod's label rather than a parameter: a parameter would defeat caching.
        kubernetes.use_field_path_as_env(task, RUN_VARIABLE, "metadata.labels['pipeline/runid']")
        for keys, optional in ((secret_keys(self._profile), False), (OPTIONAL_KEYS, True)):
            kubernetes.use_secret_as_env(
                task, kubeflow.secret, {key: key for key in keys}, optional=optional
            )
        kubernetes.empty_dir_mount(task, "tmp", "/tmp")
        kubernetes.set_security_context(task, run_as_user=USER, run_as_non_root=True)
        if kubeflow.image_pull_secret:
            kubernetes.set_image_pull_secrets(task, [kubeflow.image_pull_secret])


def secret_keys(profile: Profile) -> tuple[str, ...]:
    """The keys that the steps of `profile` take from its secret."""
    judges = (profile.curate_sft.judge, profile.curate_rl.judge, profile.evaluate.judge)
    judge_keys = {judge.api_key_env for judge in judges if judge is not None}
    search_keys = profile.search.keys if profile.search else ()
    return (*S3_KEYS, *search_keys, *sorted(judge_keys))


def endpoint_keys(profile: Profile) -> tuple[str, ...]:
    """The keys that the deployment alone takes from the secret of `profile`."""
    return (KEY_VARIABLE,) if profile.serve.keys else ()


def _limit(task: PipelineTask, cpu: str, memory: str) -> None:
    task.set_cpu_request(cpu).set_cpu_limit(cpu)
    task.set_memory_request(memory).set_memory_limit(memory)


def _retry(task: PipelineTask) -> None:
    """Try again after one, two and four minutes."""
    task.set_retry(3, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="900s")
