"""The endpoint on a cluster: a KServe `InferenceService`, agent in front of a vLLM predictor."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from kserve import (
    V1beta1InferenceService,
    V1beta1InferenceServiceSpec,
    V1beta1ModelFormat,
    V1beta1ModelSpec,
    V1beta1PredictorSpec,
    V1beta1TransformerSpec,
    constants,
)
from kubernetes import client as k8s

from toolwise.errors import InputError
from toolwise.kubernetes.environment import secret_variable
from toolwise.kubernetes.pod_security import USER, restricted_container, restricted_pod
from toolwise.serving.cluster import ClusterSettings
from toolwise.serving.settings import SENDING_SECONDS, ServingSettings
from toolwise.storage import S3_KEYS, S3_REGION
from toolwise.tools.sandbox import SANDBOX_VARIABLE, Isolation

PORT = 8080
STORAGE = ("s3", "gs", "hf", "pvc", "oci")
_UNROUTED_SECONDS = 5
"""How long requests may still be routed to a pod that is told to end."""
_SHUTDOWN_SECONDS = 10
_KSERVES = ("--name", "--port")
"""Options that KServe gives in its own spelling."""


def inference_service(
    serving: ServingSettings, cluster: ClusterSettings, model_uri: str, corpus_uri: str | None
) -> dict[str, Any]:
    """The InferenceService as a manifest.

    Args:
        serving: name, limits and isolation of the agent.
        cluster: where it runs.
        model_uri: the registered version's checkpoint, at a storage KServe reads.
        corpus_uri: what `text_search` searches; none leaves that tool out.

    Raises:
        InputError: KServe cannot read the model from `model_uri`.
    """
    if urlsplit(model_uri).scheme not in STORAGE:
        raise InputError(
            f"{model_uri}: KServe reads models from {', '.join(f'{s}://' for s in STORAGE)}; "
            "publish the checkpoint there"
        )
    service = V1beta1InferenceService(
        api_version=constants.KSERVE_V1BETA1,
        kind=constants.KSERVE_KIND_INFERENCESERVICE,
        metadata=k8s.V1ObjectMeta(name=serving.name, namespace=cluster.namespace),
        spec=V1beta1InferenceServiceSpec(
            predictor=_predictor(serving, cluster, model_uri),
            transformer=_agent(serving, cluster, corpus_uri),
        ),
    )
    manifest: Any = k8s.ApiClient().sanitize_for_serialization(service)
    return manifest


def _predictor(
    serving: ServingSettings, cluster: ClusterSettings, model_uri: str
) -> V1beta1PredictorSpec:
    resources = {"cpu": cluster.cpu, "memory": cluster.memory}
    if cluster.gpus:
        resources["nvidia.com/gpu"] = str(cluster.gpus)
    return V1beta1PredictorSpec(
        min_replicas=cluster.replicas[0],
        max_replicas=cluster.replicas[1],
        service_account_name=cluster.service_account,
        automount_service_account_token=False,
        security_context=restricted_pod(),
        timeout=serving.request_seconds,
        model=V1beta1ModelSpec(
            model_format=V1beta1ModelFormat(name="huggingface"),
            runtime="kserve-huggingfaceserver",
            storage_uri=model_uri,
            args=[
                f"--model_name={serving.name}",
                "--backend=vllm",
                f"--max-model-len={cluster.context_tokens}",
                f"--tensor-parallel-size={max(cluster.gpus, 1)}",
                "--enable-auto-tool-choice",
                "--tool-call-parser=hermes",
            ],
            resources=k8s.V1ResourceRequirements(requests=resources, limits=resources),
        ),
    )


def _agent(
    serving: ServingSettings, cluster: ClusterSettings, corpus_uri: str | None
) -> V1beta1TransformerSpec:
    # KServe itself adds --model_name, --predictor_host and --http_port.
    options = serving.model_copy(update={"host": "0.0.0.0"}).options()
    args = [f"{name}={value}" for name, value in options.items() if name not in _KSERVES]
    keys = [*(serving.search.keys if serving.search else ())]
    if corpus_uri is not None:
        args.append(f"--corpus={corpus_uri}")
        keys += (*S3_KEYS, S3_REGION) if corpus_uri.startswith("s3://") else ()
    # The corpus and its index are kept under HOME, and the image cannot be written to.
    plain = {"HOME": "/tmp"} | ({SANDBOX_VARIABLE: cluster.sandbox} if cluster.sandbox else {})
    if serving.trace_share and cluster.tracking_uri:
        plain["MLFLOW_TRACKING_URI"] = cluster.tracking_uri
    volumes, mounts = _keys_file(serving, cluster)
    volumes.append(k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource()))
    mounts.append(k8s.V1VolumeMount(name="tmp", mount_path="/tmp"))
    container = k8s.V1Container(
        name="kserve-container",
        image=cluster.image,
        command=["python", "-m", "toolwise.serving"],
        args=args,
        env=[
            *(k8s.V1EnvVar(name=name, value=value) for name, value in plain.items()),
            *(secret_variable(cluster.secret, key, optional=key == S3_REGION) for key in keys),
        ],
        volume_mounts=mounts,
        ports=[k8s.V1ContainerPort(container_port=PORT, protocol="TCP")],
        # A corpus is fetched and indexed before the server answers.
        startup_probe=_probe(
            "/v2/health/live", period_seconds=10, failure_threshold=-(-cluster.ready_seconds // 10)
        ),
        lifecycle=k8s.V1Lifecycle(
            pre_stop=k8s.V1LifecycleHandler(
                _exec=k8s.V1ExecAction(command=["sleep", str(_UNROUTED_SECONDS)])
            )
        ),
        readiness_probe=_probe(f"/v1/models/{serving.name}", period_seconds=5, timeout_seconds=2),
        liveness_probe=_probe("/v2/health/live", period_seconds=20, timeout_seconds=10),
        resources=k8s.V1ResourceRequirements(
            requests={"cpu": "1", "memory": "2Gi"}, limits={"cpu": "4", "memory": "4Gi"}
        ),
        security_context=restricted_container(),
    )
    return V1beta1TransformerSpec(
        min_replicas=cluster.replicas[0],
        max_replicas=cluster.replicas[1],
        # The gateway's too: the agent's own word of a request out of time has to come first.
        timeout=serving.request_seconds + SENDING_SECONDS,
        termination_grace_period_seconds=(
            _UNROUTED_SECONDS + serving.request_seconds + _SHUTDOWN_SECONDS
        ),
        runtime_class_name=(
            cluster.runtime_class if serving.isolation is Isolation.GVISOR else None
        ),
        service_account_name=cluster.service_account,
        automount_service_account_token=False,
        security_context=restricted_pod(USER),
        volumes=volumes,
        containers=[container],
    )


def _probe(path: str, **limits: int) -> k8s.V1Probe:
    return k8s.V1Probe(http_get=k8s.V1HTTPGetAction(path=path, port=PORT), **limits)


def _keys_file(
    serving: ServingSettings, cluster: ClusterSettings
) -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
    """The secret with the file of API keys, mounted where the agent looks for it."""
    if serving.keys is None:
        return [], []
    if cluster.keys_secret is None:
        raise InputError(
            f"serve.keys is {serving.keys}, but kubeflow.serving.keys_secret does not name the "
            "Kubernetes secret that holds it"
        )
    source = k8s.V1SecretVolumeSource(secret_name=cluster.keys_secret)
    volume = k8s.V1Volume(name="api-keys", secret=source)
    folder = str(serving.keys.parent)
    return [volume], [k8s.V1VolumeMount(name="api-keys", mount_path=folder, read_only=True)]
