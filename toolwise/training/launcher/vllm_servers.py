"""vLLM beside the trainer: a server with GPUs of its own, as Kubernetes objects.

TRL's client hands the trained weights to one server after each step, over NCCL; the server spreads
the model over `hardware.vllm_gpus`.
"""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client as k8s

from toolwise.agent.vllm_process import serve_command
from toolwise.kubernetes.environment import secret_variable
from toolwise.kubernetes.pod_security import USER, restricted_container, restricted_pod
from toolwise.storage import S3_REGION
from toolwise.training.hardware import HardwareSettings
from toolwise.training.launcher.cluster import Cluster

PORT = 8000
_FETCHING = {"cpu": "2", "memory": "4Gi"}
_FETCH = (
    "import shutil, sys; from toolwise.storage import local_copy; "
    "shutil.copytree(local_copy(sys.argv[1]), '/model', dirs_exist_ok=True)"
)


def server_command(model: str, hardware: HardwareSettings) -> list[str]:
    """The command of a vLLM server that TRL's client can hand weights to.

    Args:
        model: checkpoint folder.
        hardware: GPUs, memory, and the longest conversation.
    """
    return [
        *serve_command(
            model,
            PORT,
            gpus=hardware.vllm_gpus,
            memory=hardware.vllm_memory,
            context_tokens=hardware.context_tokens,
        ),
        "--dtype=bfloat16",  # the trainer's, whatever the checkpoint's weights were saved in
        f"--weight-transfer-config={json.dumps({'backend': 'nccl'})}",
    ]


def server_address(name: str) -> str:
    """Where the trainers of a `TrainJob` find its server."""
    return f"http://{name}-vllm:{PORT}"


def server_objects(
    name: str, owner: dict[str, Any], model: str, hardware: HardwareSettings, cluster: Cluster
) -> tuple[k8s.V1Deployment, k8s.V1Service]:
    """The server of a `TrainJob`, which Kubernetes deletes with it.

    Args:
        name: the `TrainJob`'s.
        owner: the `TrainJob` as the cluster has it, for its uid.
        model: address of the checkpoint to start from.
        hardware: GPUs, memory, and the longest conversation.
        cluster: images, resources and secrets.
    """
    labels = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": name}
    metadata = k8s.V1ObjectMeta(
        name=f"{name}-vllm",
        labels=labels,
        owner_references=[
            k8s.V1OwnerReference(
                api_version=owner["apiVersion"],
                kind=owner["kind"],
                name=name,
                uid=owner["metadata"]["uid"],
            )
        ],
    )
    resources = {
        "cpu": cluster.cpu,
        "memory": cluster.memory,
        cluster.accelerator: str(hardware.vllm_gpus),
    }
    folder = k8s.V1VolumeMount(name="model", mount_path="/model")
    tmp = k8s.V1VolumeMount(name="tmp", mount_path="/tmp")
    # What is compiled and fetched goes under HOME, for the images cannot be written to.
    home = k8s.V1EnvVar(name="HOME", value="/tmp")
    server = k8s.V1Container(
        name="vllm",
        image=cluster.vllm_image,
        command=server_command("/model", hardware),
        # Weights are handed over through endpoints that vLLM has in this mode only.
        env=[home, k8s.V1EnvVar(name="VLLM_SERVER_DEV_MODE", value="1")],
        ports=[k8s.V1ContainerPort(container_port=PORT)],
        readiness_probe=k8s.V1Probe(
            http_get=k8s.V1HTTPGetAction(path="/health", port=PORT), period_seconds=5
        ),
        resources=k8s.V1ResourceRequirements(limits=resources, requests=resources),
        # NCCL and tensor parallelism hand tensors over in shared memory.
        volume_mounts=[folder, tmp, k8s.V1VolumeMount(name="shm", mount_path="/dev/shm")],
        security_context=restricted_container(),
    )
    fetching = k8s.V1Container(
        name="fetch-model",
        image=cluster.image,
        command=["python", "-c", _FETCH, model],
        env=[
            home,
            k8s.V1EnvVar(name="TOOLWISE_CACHE", value="/model/.cache"),
            *(secret_variable(cluster.secret, key) for key in cluster.secret_keys),
            secret_variable(cluster.secret, S3_REGION, optional=True),
        ],
        volume_mounts=[folder, tmp],
        resources=k8s.V1ResourceRequirements(limits=_FETCHING, requests=_FETCHING),
        security_context=restricted_container(),
    )
    pull_secret = cluster.image_pull_secret
    pod = k8s.V1PodSpec(
        image_pull_secrets=[k8s.V1LocalObjectReference(name=pull_secret)] if pull_secret else None,
        init_containers=[fetching],
        containers=[server],
        volumes=[
            k8s.V1Volume(name="model", empty_dir=k8s.V1EmptyDirVolumeSource()),
            k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource()),
            k8s.V1Volume(name="shm", empty_dir=k8s.V1EmptyDirVolumeSource(medium="Memory")),
        ],
        node_selector=cluster.node_selector,
        tolerations=[k8s.V1Toleration(**one.model_dump()) for one in cluster.tolerations],
        automount_service_account_token=False,
        security_context=restricted_pod(USER),
    )
    deployment = k8s.V1Deployment(
        api_version="apps/v1",
        kind="Deployment",
        metadata=metadata,
        spec=k8s.V1DeploymentSpec(
            replicas=1,
            selector=k8s.V1LabelSelector(match_labels=labels),
            strategy=k8s.V1DeploymentStrategy(type="Recreate"),
            template=k8s.V1PodTemplateSpec(metadata=k8s.V1ObjectMeta(labels=labels), spec=pod),
        ),
    )
    service = k8s.V1Service(
        api_version="v1",
        kind="Service",
        metadata=metadata,
        spec=k8s.V1ServiceSpec(selector=labels, ports=[k8s.V1ServicePort(port=PORT)]),
    )
    return deployment, service
