"""A training step as a Kubeflow Trainer `TrainJob`: what it is made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from kubeflow_trainer_api import models
from pydantic import BaseModel, ConfigDict

from toolwise.storage import S3_REGION
from toolwise.tools.sandbox import SANDBOX_VARIABLE
from toolwise.training.hardware import HardwareSettings
from toolwise.training.launcher.cluster import Cluster

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "toolwise-torch"
"""The `ClusterTrainingRuntime` every `TrainJob` here refers to; see docs/scaling.md."""
VOLUME = "/var/toolwise"
"""Where the runtime mounts a volume that outlives the pods and that all nodes share."""
NODES = "node"
"""The runtime's replicated job that trains."""
MANAGER = "toolwise"
"""Whose patches of the runtime ours are."""
SERVER_VARIABLE = "TOOLWISE_VLLM_SERVER"
"""Environment variable of a trainer: address of the vLLM server beside it."""


class NodeWork(BaseModel):
    """What every process of a `TrainJob` does: a training step, on inputs that travel by address.

    Args:
        step: `train-sft` or `train-hdpo`.
        settings: its section of the profile, as JSON.
        seed: the run's seed.
        inputs: addresses by input name.
        output: where the checkpoint goes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    settings: str
    seed: int
    inputs: dict[str, str]
    output: str


def job_name(step: str, identity: dict[str, Any]) -> str:
    """The name of the `TrainJob` that does exactly this: the same again after a restart."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{step}-{digest[:10]}"


def train_job(
    name: str,
    work: NodeWork,
    processes: int,
    hardware: HardwareSettings,
    cluster: Cluster,
    server: str | None = None,
) -> models.TrainerV1alpha1TrainJob:
    """The `TrainJob` of a training step.

    Args:
        name: see `job_name`.
        work: what every process does.
        processes: GPUs of a node.
        hardware: how many nodes.
        cluster: image, resources, nodes and secrets.
        server: address of the vLLM server beside it.
    """
    environment = [
        *(_variable(key, value) for key, value in _plain(server, cluster.sandbox).items()),
        *(_secret_variable(cluster.secret, key) for key in cluster.secret_keys),
        _secret_variable(cluster.secret, S3_REGION, optional=True),
    ]
    resources = {
        "cpu": cluster.cpu,
        "memory": cluster.memory,
        cluster.accelerator: str(processes),
    }
    return models.TrainerV1alpha1TrainJob(
        apiVersion=f"{GROUP}/{VERSION}",
        kind="TrainJob",
        metadata=models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
            name=name, labels={"app.kubernetes.io/part-of": "toolwise"}
        ),
        spec=models.TrainerV1alpha1TrainJobSpec(
            runtimeRef=models.TrainerV1alpha1RuntimeRef(
                apiGroup=GROUP, kind="ClusterTrainingRuntime", name=RUNTIME
            ),
            runtimePatches=[_placed(cluster)]
            if cluster.node_selector or cluster.tolerations or cluster.image_pull_secret
            else None,
            trainer=models.TrainerV1alpha1Trainer(
                image=cluster.image,
                # The runtime sets PET_*: nodes, processes, and where they meet.
                command=["torchrun", "-m", "toolwise.steps.node"],
                args=[work.model_dump_json()],
                numNodes=hardware.nodes,
                numProcPerNode=processes,
                resourcesPerNode=models.IoK8sApiCoreV1ResourceRequirements(
                    limits=_quantities(resources), requests=_quantities(resources)
                ),
                env=environment,
            ),
        ),
    )


def _placed(cluster: Cluster) -> models.TrainerV1alpha1RuntimePatch:
    """The runtime's pods, on the nodes and with the pull secret that the profile names."""
    pull_secret = cluster.image_pull_secret
    pod = models.TrainerV1alpha1PodSpecPatch(
        imagePullSecrets=[models.IoK8sApiCoreV1LocalObjectReference(name=pull_secret)]
        if pull_secret
        else None,
        nodeSelector=cluster.node_selector or None,
        tolerations=[
            models.IoK8sApiCoreV1Toleration(**one.model_dump()) for one in cluster.tolerations
        ]
        or None,
    )
    job = models.TrainerV1alpha1JobSpecPatch(
        template=models.TrainerV1alpha1PodTemplatePatch(spec=pod)
    )
    nodes = models.TrainerV1alpha1ReplicatedJobPatch(
        name=NODES, template=models.TrainerV1alpha1JobTemplatePatch(spec=job)
    )
    return models.TrainerV1alpha1RuntimePatch(
        manager=MANAGER,
        trainingRuntimeSpec=models.TrainerV1alpha1TrainingRuntimeSpecPatch(
            template=models.TrainerV1alpha1JobSetTemplatePatch(
                spec=models.TrainerV1alpha1JobSetSpecPatch(replicatedJobs=[nodes])
            )
        ),
    )


def _plain(server: str | None, sandbox: str | None) -> dict[str, str]:
    """Environment of a trainer: what it fetches and what it keeps stands on the volume."""
    here = {
        "TOOLWISE_WORK": f"{VOLUME}/work",
        "TOOLWISE_CACHE": f"{VOLUME}/cache",
        "PYTHONUNBUFFERED": "1",
    }
    beside = {SERVER_VARIABLE: server, SANDBOX_VARIABLE: sandbox}
    return here | {name: address for name, address in beside.items() if address}


def _quantities(amounts: dict[str, str]) -> Any:
    return {
        name: models.IoK8sApimachineryPkgApiResourceQuantity(amount)
        for name, amount in amounts.items()
    }


def _variable(name: str, value: str) -> models.IoK8sApiCoreV1EnvVar:
    return models.IoK8sApiCoreV1EnvVar(name=name, value=value)


def _secret_variable(
    secret: str, key: str, *, optional: bool = False
) -> models.IoK8sApiCoreV1EnvVar:
    selector = models.IoK8sApiCoreV1SecretKeySelector(
        name=secret, key=key, optional=optional or None
    )
    return models.IoK8sApiCoreV1EnvVar(
        name=key, valueFrom=models.IoK8sApiCoreV1EnvVarSource(secretKeyRef=selector)
    )
