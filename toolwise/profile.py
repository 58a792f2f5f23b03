"""A profile: everything one way to run the pipeline needs to know, in one validated file."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from toolwise.agent.vllm_process import VLLMSettings
from toolwise.curation.rl import RlCurationSettings
from toolwise.curation.sft import SftCurationSettings
from toolwise.errors import InputError
from toolwise.evaluation.benchmarks import benchmark_names
from toolwise.evaluation.settings import EvaluationSettings
from toolwise.kubernetes.fields import (
    Cores,
    ImageName,
    Memory,
    Name,
    Namespace,
    ResourceName,
)
from toolwise.kubernetes.toleration import Toleration
from toolwise.preparation import PublishedData
from toolwise.promotion.policy import GatePolicy
from toolwise.serving.cluster import ClusterSettings, DeploymentSettings
from toolwise.serving.settings import ServingSettings
from toolwise.synthetic.settings import BaseStageSettings, SignboardSettings
from toolwise.tools.sandbox.contract import Isolation
from toolwise.tools.search.settings import SearchSettings
from toolwise.training.hardware import HardwareSettings
from toolwise.training.settings import HdpoSettings, SftSettings

REGISTRY = "ghcr.io/toolwise"
"""Where Toolwise's images are pulled from, unless a run names another registry."""


class DataSettings(BaseModel):
    """Where the data comes from: made on the spot, or published. Exactly one is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signboard: SignboardSettings | None = None
    published: PublishedData | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.signboard is None) == (self.published is None):
            raise ValueError("give either `signboard` or `published`")
        return self


class BaseModelSettings(BaseModel):
    """Where the base model comes from: trained on the spot, or published. Exactly one is given.

    Args:
        train: settings of the small built-in model's training.
        checkpoint: a checkpoint's path, `s3://…` or `hf://…`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: BaseStageSettings | None = None
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.checkpoint is None):
            raise ValueError("give either `train` or `checkpoint`")
        return self


class KubeflowSettings(BaseModel):
    """What a Kubeflow Pipelines server needs to run the steps as pods.

    Args:
        image: image of the steps that run a model, with its tag.
        operator_image: image of the other steps, with KServe's client and without torch.
        image_pull_secret: Kubernetes secret that pulls the images, where the registry asks for one.
        namespace: where the pods run on a server with several users; one for a single user runs
            them where it is itself.
        service_account: whose rights the steps have; the server's own choice without it.
        tracking_uri: MLflow server, as pods reach it.
        serving: where the promoted model is served.
        sandbox: server that runs the model's code (`toolwise.tools.server`), as pods reach it;
            without one, each pod does, if it may make namespaces.
        accelerator: resource name of the GPUs.
        accelerators: GPUs of each step that trains; a curation takes one, an evaluation one per
            process, or either those of `vllm`, and with fewer GPUs as much less of `cpu` and
            `memory`. Fetching a published base model takes none.
        cpu, memory: limits of each step that runs a model.
        shared_memory: size of `/dev/shm` there, through which processes exchange tensors; a part
            of `memory`.
        node_selector, tolerations: labels and taints of the nodes these steps run on, and of those
            of the `TrainJob`s and vLLM servers they start.
        secret: Kubernetes secret with `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and
            `AWS_ENDPOINT_URL_S3`, with `SERPER_API_KEY` where `search` asks Serper, and with the
            key that `judge` names; `AWS_DEFAULT_REGION` and `HF_TOKEN` are used where they are
            there. With `serve.keys`, also with `TOOLWISE_API_KEY`: one of those keys, to try the
            endpoint with.
        exchange: `s3://…` prefix through which a training step hands its inputs to the `TrainJob`
            it starts and gets the checkpoint back; without one it trains in its own pod.
        vllm_image: image of the vLLM server beside the trainer, where `hardware` asks for one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: ImageName
    operator_image: ImageName
    image_pull_secret: Name | None = None
    namespace: Namespace = "toolwise"
    service_account: Name | None = None
    tracking_uri: str = Field(pattern=r"^https?://[^/]")
    serving: ClusterSettings
    sandbox: str | None = Field(default=None, pattern=r"^https?://[^/]")
    accelerator: ResourceName = "nvidia.com/gpu"
    accelerators: int = Field(default=8, ge=0)
    cpu: Cores = "32"
    memory: Memory = "256Gi"
    shared_memory: Memory = "16Gi"
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    secret: Name = "toolwise-storage"
    exchange: str | None = Field(default=None, pattern=r"^s3://[^/]+/.+")
    vllm_image: ImageName | None = None


class Profile(BaseModel):
    """One way to run the pipeline.

    Args:
        name: names runs, the MLflow experiment and the registered model.
        seed: seed of every step, unless a run asks for another.
        data, base, curate_sft, sft, curate_rl, hdpo, evaluate, promote, serve: settings of the
            steps.
        search: the search tools of all steps that do not have their own.
        vllm: has models answer by vLLM in curation and evaluation, where a step has no settings of
            its own; without it, by the in-process engine.
        hardware: the GPUs of both training steps; without it, this machine's cores.
        kubeflow: how to run on a Kubeflow Pipelines server; without it, locally only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: DataSettings
    base: BaseModelSettings
    curate_sft: SftCurationSettings
    sft: SftSettings
    curate_rl: RlCurationSettings
    hdpo: HdpoSettings
    evaluate: EvaluationSettings
    promote: GatePolicy
    serve: ServingSettings
    search: SearchSettings | None = None
    vllm: VLLMSettings | None = None
    hardware: HardwareSettings | None = None
    kubeflow: KubeflowSettings | None = None

    @model_validator(mode="after")
    def _all_published_data(self) -> Self:
        published = self.data.published
        if published is not None:
            needed = ["trajectories", "tasks", "benchmark"]
            if self.search is None:
                needed.append("corpus")
            missing = [f"`{kind}`" for kind in needed if not getattr(published, kind)]
            if missing:
                raise ValueError(f"data.published lacks {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _benchmarks_to_be_had(self) -> Self:
        published = self.data.published
        if published is None:
            return self
        known = benchmark_names()
        for one in published.benchmark:
            if one.path.isidentifier() and one.path not in known:
                raise ValueError(
                    f"data.published.benchmark: there is no benchmark {one.path!r}; there are: "
                    f"{', '.join(known)} (a file or folder of that name is ./{one.path})"
                )
        names = benchmarks_of(published)
        others = sorted(set(self.promote.benchmarks) - set(names))
        # Whose items a file of tasks holds is not known before it is read.
        if others and None not in names:
            raise ValueError(
                f"promote.benchmarks: {', '.join(others)} is none of data.published.benchmark"
            )
        return self

    @model_validator(mode="after")
    def _machines_to_be_had(self) -> Self:
        hardware, kubeflow = self.hardware, self.kubeflow
        cluster = kubeflow is not None and kubeflow.exchange is not None
        if cluster and hardware is None:
            raise ValueError("kubeflow.exchange is for a TrainJob, which needs `hardware`")
        if hardware and hardware.nodes > 1 and not cluster:
            raise ValueError("hardware.nodes above 1 needs kubeflow.exchange")
        if hardware and kubeflow and kubeflow.accelerators == 0:
            raise ValueError("kubeflow.accelerators cannot be 0 with `hardware`, which is of GPUs")
        if self.vllm and kubeflow and self.vllm.gpus > kubeflow.accelerators:
            raise ValueError(
                f"vllm.gpus {self.vllm.gpus} is more than kubeflow.accelerators "
                f"{kubeflow.accelerators}"
            )
        if hardware and hardware.vllm == "server" and not (kubeflow and kubeflow.vllm_image):
            raise ValueError("hardware.vllm `server` needs kubeflow.vllm_image")
        return self

    @model_validator(mode="after")
    def _sandbox_to_be_had(self) -> Self:
        if self.kubeflow is not None and self.kubeflow.sandbox is None:
            for name, level in self.isolation.items():
                if level is Isolation.GVISOR:
                    raise ValueError(f"{name}.isolation `gvisor` needs kubeflow.sandbox")
        return self

    @model_validator(mode="after")
    def _same_everywhere(self) -> Self:
        """What the profile has for several steps, where a step has nothing of its own."""
        shared = {"search": self.search, "vllm": self.vllm, "hardware": self.hardware}
        changed = {}
        for name in _SECTIONS.values():
            step = getattr(self, name)
            own = {
                key: value
                for key, value in shared.items()
                if key in type(step).model_fields and getattr(step, key) is None
            }
            changed[name] = step.model_copy(update=own)
        return self.model_copy(update=changed)

    def at_registry(self, registry: str = REGISTRY, tag: str | None = None) -> Profile:
        """The profile with Toolwise's images pulled from another registry.

        Args:
            registry: instead of `REGISTRY`.
            tag: instead of the profile's.

        Raises:
            InputError: it has no image of `REGISTRY`, or there can be none of that name.
        """
        found = False

        def moved(image: str | None) -> str | None:
            nonlocal found
            if image is None or not image.startswith(f"{REGISTRY}/"):
                return image
            found = True
            name = image.removeprefix(f"{REGISTRY}/")
            if tag is not None:
                name = f"{re.split('[:@]', name)[0]}:{tag}"
            return f"{registry.rstrip('/')}/{name}"

        kubeflow = self.kubeflow and self.kubeflow.model_dump(mode="json")
        if kubeflow:
            kubeflow |= {name: moved(kubeflow[name]) for name in _IMAGES}
            kubeflow["serving"]["image"] = moved(kubeflow["serving"]["image"])
        if not found:
            raise InputError(
                f"profile {self.name!r} has no image of {REGISTRY} for another to stand in for; "
                "name its images in its section `kubeflow`, or leave registry and tag out"
            )
        try:
            settings = KubeflowSettings.model_validate(kubeflow)
        except ValidationError as error:
            fault = error.errors()[0]
            raise InputError(
                f"registry {registry!r} and tag {tag or 'of the profile'!r}: "
                f"{fault['input']!r} {fault['msg'].removeprefix('Value error, ')}"
            ) from None
        return self.model_copy(update={"kubeflow": settings})

    def section_of(self, step: str) -> BaseModel:
        """The settings of a step, by its name (`train-sft`)."""
        return self.deployment if step == "deploy" else getattr(self, _SECTIONS[step])

    @property
    def isolation(self) -> dict[str, Isolation]:
        """The lowest isolation accepted by each section whose step runs the model's code."""
        sections = {name: getattr(self, name) for name in _SECTIONS.values()}
        return {
            name: section.isolation
            for name, section in sections.items()
            if "isolation" in type(section).model_fields
        }

    @property
    def deployment(self) -> DeploymentSettings:
        """What is served, and where."""
        if self.kubeflow is None:
            return DeploymentSettings(serve=self.serve)
        cluster = self.kubeflow.serving
        shared = {
            "sandbox": cluster.sandbox or self.kubeflow.sandbox,
            "tracking_uri": cluster.tracking_uri or self.kubeflow.tracking_uri,
        }
        return DeploymentSettings(serve=self.serve, cluster=cluster.model_copy(update=shared))


def benchmarks_of(published: PublishedData) -> list[str | None]:
    """Names of the benchmarks that are held out; None for a file of tasks of whatever benchmark."""
    known = benchmark_names()
    named = [one.path if one.path in known else one.source for one in published.benchmark]
    return [name if name in known else None for name in named]


_IMAGES = ("image", "operator_image", "vllm_image")
_SECTIONS = {
    "prepare-data": "data",
    "base-model": "base",
    "curate-sft": "curate_sft",
    "train-sft": "sft",
    "curate-rl": "curate_rl",
    "train-hdpo": "hdpo",
    "evaluate": "evaluate",
    "promote": "promote",
    "deploy": "serve",
}


def profile_names() -> list[str]:
    """The profiles that come with Toolwise."""
    folder = resources.files("pipelines") / "profiles"
    return sorted(
        Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_profile(name: str) -> Profile:
    """Read a profile by name, or by the path of a YAML file.

    Raises:
        InputError: there is no such profile, or a field is wrong; names file, field and remedy.
    """
    text, where = _read(name)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: a profile is a mapping of sections to settings")
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise InputError(
            "\n".join(f"{where}: {_fault(dict(fault))}" for fault in error.errors())
        ) from None


def _read(name: str) -> tuple[str, str]:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        try:
            return path.read_text(encoding="utf-8"), name
        except OSError as error:
            raise InputError(f"{name}: the profile cannot be read: {error.strerror}") from None
    if name not in profile_names():
        raise InputError(
            f"there is no profile {name!r}; there are: {', '.join(profile_names())}"
            " (or give the path of a .yaml file)"
        )
    file = resources.files("pipelines") / "profiles" / f"{name}.yaml"
    return file.read_text(encoding="utf-8"), f"pipelines/profiles/{name}.yaml"


def _fault(fault: dict[str, Any]) -> str:
    """One pydantic error as field, fault and what is allowed."""
    location = [str(part) for part in fault["loc"]]
    field = ".".join(location) or "profile"
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_of(location[:-1]))
        return f"{field}: there is no such setting; allowed here: {allowed}"
    if fault["type"] == "missing":
        return f"{field}: is missing"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    shown = f" (given: {given!r})" if not isinstance(given, dict | BaseModel) else ""
    return f"{field}: {message[0].lower()}{message[1:]}{shown}"


def _fields_of(location: list[str]) -> list[str]:
    """Names of the settings a section allows."""
    section: Any = Profile
    for part in location:
        annotation = section.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        section = next(
            kind
            for kind in (*arguments, annotation)
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return list(section.model_fields)
