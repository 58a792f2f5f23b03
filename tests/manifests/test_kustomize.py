"""What `k8s/` gives a cluster is valid, and is what the code asks the cluster for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from kubernetes import client as k8s
from kubernetes.utils.quantity import parse_quantity

from tests.manifests import kustomize, operators
from tests.manifests.__main__ import faults as linted
from tests.manifests.__main__ import unchecked
from tests.manifests.kustomize import (
    K8S,
    KUBECTL,
    OVERLAYS,
    Refused,
    faults,
    patch_faults,
    written,
)
from tests.manifests.manifests import Document, check, read
from toolwise.kubernetes.pod_security import USER
from toolwise.kubernetes.toleration import Toleration
from toolwise.profile import KubeflowSettings, Profile, load_profile
from toolwise.serving.cluster import ClusterSettings
from toolwise.serving.inference_service import inference_service
from toolwise.tools.search.settings import SearchSettings
from toolwise.training.hardware import HardwareSettings
from toolwise.training.launcher.cluster import Cluster
from toolwise.training.launcher.trainjob import NODES, RUNTIME, VOLUME, NodeWork, train_job
from toolwise.training.launcher.vllm_servers import server_objects

ROOT = Path(__file__).parents[2]
SECRET = KubeflowSettings.model_fields["secret"].default

WORK = NodeWork(step="train-hdpo", settings="{}", seed=0, inputs={}, output="s3://toolwise/out")
CLUSTER = Cluster(
    image="ghcr.io/toolwise/trainer:0.1.0",
    exchange="s3://toolwise/training",
    accelerator="nvidia.com/gpu",
    cpu="32",
    memory="256Gi",
    secret=SECRET,
    secret_keys=("AWS_ACCESS_KEY_ID",),
    vllm_image="ghcr.io/toolwise/rollout:0.1.0",
    node_selector={"gpu": "h100"},
    tolerations=(Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
)


def built(folder: Path) -> list[Document]:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed; 1.21 or newer builds the overlays")
    return kustomize.built(folder)


def named(documents: list[Document], kind: str) -> Document:
    [found] = [document for document in documents if document["kind"] == kind]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_builds_and_keeps_the_rules(overlay: str) -> None:
    assert faults(built(K8S / overlay)) == []
    assert [*patch_faults(K8S / overlay)] == []


def test_the_bases_files_keep_the_rules_as_they_stand() -> None:
    assert faults(written(K8S / "base")) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_that_ask_for_more_than_restricted_are_refused(overlay: str) -> None:
    labels = named(built(K8S / overlay), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_has_no_label_that_kubeflows_profile_controller_sets(overlay: str) -> None:
    # A server-side apply of another value is a conflict; `part-of` admits Kubeflow's own traffic.
    labels = named(built(K8S / overlay), "Namespace")["metadata"]["labels"]
    theirs = {
        "app.kubernetes.io/part-of",
        "istio-injection",
        "katib.kubeflow.org/metrics-collector-injection",
        "pipelines.kubeflow.org/enabled",
        "serving.kubeflow.org/inferenceservice",
    }
    assert not theirs & labels.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_change_amounts_and_nodes_and_nothing_else(overlay: str) -> None:
    base, made = built(K8S / "base"), built(K8S / overlay)
    assert [(d["kind"], d["metadata"]) for d in made] == [(d["kind"], d["metadata"]) for d in base]


@pytest.mark.parametrize(
    ("file", "right", "typo"),
    [
        ("namespace.yaml", "labels:", "lables:"),
        ("limits.yaml", "defaultRequest", "defaultRequests"),
        ("limits.yaml", "hard:", "hards:"),
        ("training-volume.yaml", "name: toolwise-training", "name: toolwise-trainning"),
        ("training-volume.yaml", "accessModes", "accessMode"),
        ("training-runtime.yaml", "mlPolicy", "mlpolicy"),
        ("training-runtime.yaml", "replicatedJobs", "replicatedJob"),
        ("training-runtime.yaml", "claimName: toolwise-training", "claimName: training"),
        ("training-runtime.yaml", "runAsNonRoot: true", "runAsNonRoot: false"),
        ("training-runtime.yaml", "trainer:0.1.0", "trainer:latest"),
        (
            "training-runtime.yaml",
            "name: work\n                      p",
            "name: works\n                      p",
        ),
        ("serving-runtime.yaml", "supportedModelFormats", "supportedModelFormat"),
        ("serving-runtime.yaml", "protocolVersions", "protocolVersion"),
        ("serving-runtime.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("serving-runtime.yaml", "drop: [ALL]", "drop: [NET_RAW]"),
        ("serving-runtime.yaml", "kserve.io/server-type", "kserve.io/servertype"),
        ("serving-runtime.yaml", "--model_name", "--modelname"),
        ("serving-runtime.yaml", "prometheus.kserve.io/port", "prometheus.kserve.io/ports"),
        (
            "namespace.yaml",
            "pod-security.kubernetes.io/enforce:",
            "pod-security.kubernetes.io/force:",
        ),
        ("namespace.yaml", "enforce: restricted", "enforce: restrictd"),
        ("namespace.yaml", "enforce-version: v1.31", "enforce-version: 1.31"),
        ("limits.yaml", "requests.nvidia.com/gpu", "requests.nvidia.com/gpus"),
        ("limits.yaml", "requests.nvidia.com/gpu", "limits.nvidia.com/gpu"),
        ("limits.yaml", "limits.memory", "limit.memory"),
        ("limits.yaml", "type: Container", "type: container"),
        ("limits.yaml", "memory: 256Mi", "mem: 256Mi"),
        ("training-volume.yaml", "[ReadWriteMany]", "[ReadWritesMany]"),
        ("training-runtime.yaml", "trainjob-ancestor-step: t", "trainjob-ancestors-step: t"),
        ("training-runtime.yaml", "ancestor-step: trainer", "ancestor-step: training"),
        ("training-runtime.yaml", "OnRootMismatch", "OnRootMissmatch"),
        ("training-runtime.yaml", "medium: Memory", "medium: memory"),
    ],
)
def test_a_typo_in_the_base_is_caught(tmp_path: Path, file: str, right: str, typo: str) -> None:
    shutil.copytree(K8S / "base", tmp_path / "base")
    path = tmp_path / "base" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, typo, 1))
    assert faults(written(tmp_path / "base")) != []


@pytest.mark.parametrize(
    ("file", "right", "typo"),
    [
        ("gpu/kustomization.yaml", "name: toolwise-torch", "name: toolwise-tourch"),
        ("gpu/kustomization.yaml", "kind: ClusterTrainingRuntime", "kind: ClusterTrainingRuntimes"),
        ("gpu/kustomization.yaml", "path: serving-nodes.yaml", "path: serving-node.yaml"),
        ("gpu/kustomization.yaml", "../../base", "../../bases"),
        ("gpu/kustomization.yaml", "patches:", "patch:"),
        ("gpu/limits.yaml", "requests.nvidia.com/gpu", "requests.nvidia.com/gpus"),
        ("gpu/limits.yaml", "requests.cpu", "request.cpu"),
        ("gpu/limits.yaml", "name: toolwise", "name: toolwize"),
        ("gpu/serving-nodes.yaml", "key: nvidia.com/gpu", "key: nvidia.com/gpus"),
        ("gpu/serving-nodes.yaml", "operator: Exists", "operator: Exist"),
        ("gpu/serving-nodes.yaml", "effect: NoSchedule", "effect: NoSchedules"),
        ("gpu/serving-nodes.yaml", "tolerations:", "toleration:"),
        ("gpu/training-nodes.yaml", "key: nvidia.com/gpu", "key: nvidia.com/gpus"),
        ("gpu/training-nodes.yaml", "spec/tolerations", "spec/toleration"),
        ("kind/kustomization.yaml", "kind: ServingRuntime", "kind: ServingRuntimes"),
        ("kind/kustomization.yaml", "volumes/2/emptyDir/sizeLimit", "volumes/2/emptyDir/sizelimit"),
        ("kind/limits.yaml", "persistentvolumeclaims", "persistentVolumeClaims"),
        ("kind/training-volume.yaml", "[ReadWriteOnce]", "[ReadWriteonce]"),
        ("kind/training-volume.yaml", "name: toolwise-training", "name: toolwise-trainings"),
    ],
)
def test_a_typo_in_an_overlay_is_caught(tmp_path: Path, file: str, right: str, typo: str) -> None:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed; 1.21 or newer builds the overlays")
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s/overlays" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, typo, 1))
    try:
        found = [*patch_faults(path.parent), *faults(kustomize.built(path.parent))]
    except Refused:
        return
    assert found != []


# What the code submits


def runtime() -> Document:
    return named(written(K8S / "base"), "ClusterTrainingRuntime")


def runtimes_pod() -> Document:
    [job] = runtime()["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_the_runtime_is_the_one_that_trainjobs_refer_to() -> None:
    hardware = HardwareSettings(gpu="h100-80gb", nodes=2)
    submitted = train_job("train-hdpo-0", WORK, 8, hardware, CLUSTER).to_dict()
    reference = submitted["spec"]["runtimeRef"]
    group = runtime()["apiVersion"].partition("/")[0]
    assert reference == {
        "apiGroup": group,
        "kind": runtime()["kind"],
        "name": runtime()["metadata"]["name"],
    }
    assert reference["name"] == RUNTIME


def test_the_runtime_has_what_trainers_and_their_follower_rely_on() -> None:
    [job] = runtime()["spec"]["template"]["spec"]["replicatedJobs"]
    labels = job["template"]["metadata"]["labels"]
    # Trainer puts the job's image, command and environment into this container, its node selector
    # and tolerations into the pod of this replicated job, by whose name the follower finds the log.
    assert job["name"] == NODES
    assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    [container] = runtimes_pod()["containers"]
    assert container["name"] == "node"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in runtimes_pod()["volumes"]}
    assert "persistentVolumeClaim" in volumes[mounts[VOLUME]]
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert runtimes_pod()["securityContext"]["fsGroup"] == USER


def test_a_vllm_server_beside_the_trainer_keeps_the_rules_of_the_namespace() -> None:
    owner = {"apiVersion": "v1", "kind": "TrainJob", "metadata": {"uid": "0"}}
    hardware = HardwareSettings(gpu="h100-80gb", vllm="server", vllm_gpus=4)
    made = [
        k8s.ApiClient().sanitize_for_serialization(each)
        for each in server_objects("train-hdpo-0", owner, "s3://m", hardware, CLUSTER)
    ]
    assert check(made, kustomize.OUTSIDE) == []
    labels = made[0]["spec"]["template"]["metadata"]["labels"]
    [assumed] = [p.labels for p in operators.PODS if "vLLM" in p.owner]
    assert assumed.items() <= labels.items()


def test_the_endpoint_is_what_deploy_would_apply() -> None:
    [endpoint] = written(K8S / "endpoint")
    assert endpoint == published_endpoint()
    serving_runtime = named(written(K8S / "base"), "ServingRuntime")
    assert endpoint["spec"]["predictor"]["model"]["runtime"] == serving_runtime["metadata"]["name"]
    assert check([endpoint, serving_runtime], kustomize.OUTSIDE) == []


def published_endpoint() -> Document:
    """The profile's endpoint, with weights and corpus as the comment in the manifest says."""
    profile, cluster = large()
    return inference_service(
        profile.serve,
        profile.deployment.cluster or cluster,
        f"{cluster.models}/{profile.serve.name}",
        "s3://toolwise/corpora/wikipedia.jsonl",
    )


def large() -> tuple[Profile, ClusterSettings]:
    profile = load_profile("qwen3-vl-8b")
    assert profile.kubeflow is not None
    assert profile.kubeflow.serving is not None
    return profile, profile.kubeflow.serving


def test_the_gpu_overlays_quota_holds_a_training_and_the_endpoint_at_once() -> None:
    profile, endpoint = large()
    kubeflow, hardware = profile.kubeflow, profile.hdpo.hardware
    assert kubeflow is not None
    assert hardware is not None
    hard = named(built(K8S / "overlays/gpu"), "ResourceQuota")["spec"]["hard"]
    copies = endpoint.replicas[1]
    needed = {
        "requests.nvidia.com/gpu": hardware.nodes * profile.hdpo.processes + copies * endpoint.gpus,
        "requests.cpu": hardware.nodes * parse_quantity(kubeflow.cpu)
        + copies * parse_quantity(endpoint.cpu),
        "requests.memory": hardware.nodes * parse_quantity(kubeflow.memory)
        + copies * parse_quantity(endpoint.memory),
    }
    for amount, least in needed.items():
        assert parse_quantity(hard[amount]) >= least, amount


# Secrets


SERPER = re.compile(
    r"^( *)# ((?:- secretKey: |  remoteRef: .*serper|)(?:SERPER_API_KEY|,).*)$", re.M
)
"""Lines of the examples that are only for a profile which asks Serper."""


@pytest.mark.parametrize("example", ["external-secret", "sealed-secret"])
def test_the_examples_make_the_secret_that_profiles_name_with_all_its_keys(example: str) -> None:
    profile, cluster = large()
    serper = SearchSettings.model_validate({"text": {"backend": "serper"}})
    searching = profile.serve.model_copy(update={"search": serper})
    runtime_here = named(written(K8S / "base"), "ServingRuntime")
    outside = {name for name in kustomize.OUTSIDE if SECRET not in name}
    text = (K8S / f"examples/{example}.yaml").read_text()
    for serve, example_text in ((profile.serve, text), (searching, SERPER.sub(r"\1\2", text))):
        asking = inference_service(serve, cluster, "s3://m/1", "s3://m/corpus")
        assert any(SECRET in fault for fault in check([asking, runtime_here], outside))
        assert check([asking, runtime_here, *read(example_text)], outside) == []
    [fault] = check([asking, runtime_here, *read(text)], outside)
    assert "has no key SERPER_API_KEY" in fault


@pytest.mark.parametrize(
    ("file", "right", "typo"),
    [
        ("endpoint/inference-service.yaml", "path: /v1/models/metis", "path: /v1/model/metis"),
        ("endpoint/inference-service.yaml", "--concurrency=64", "--concurency=64"),
        ("endpoint/inference-service.yaml", "//toolwise-sandbox.", "//toolwise-sandbx."),
        ("examples/external-secret.yaml", "kind: SecretStore", "kind: SecretStores"),
        ("examples/external-secret.yaml", "s3-usehttps", "s3-use-https"),
        ("examples/sealed-secret.yaml", "encryptedData", "encryptData"),
    ],
)
def test_lint_sees_a_typo_in_what_no_overlay_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, right: str, typo: str
) -> None:
    monkeypatch.setattr(kustomize, "K8S", shutil.copytree(K8S, tmp_path / "k8s"))
    assert [*linted()] == []
    path = tmp_path / "k8s" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, typo, 1))
    assert any(fault.startswith(f"k8s/{file.partition('/')[0]}") for fault in linted())


def test_what_lint_leaves_out_without_kubectl_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kustomize, "KUBECTL", "/usr/bin/kubectl")
    assert unchecked() == ""
    monkeypatch.setattr(kustomize, "KUBECTL", None)
    said = unchecked()
    assert said.startswith("NOT CHECKED: k8s/overlays/kind, k8s/overlays/gpu: kubectl")
    assert "\n" not in said
