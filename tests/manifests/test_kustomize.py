"""What `k8s/` gives a cluster is valid, and is what the code asks the cluster for."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from kubernetes import client as k8s
from kubernetes.utils.quantity import parse_quantity

from tests.manifests import kustomize
from tests.manifests.__main__ import unchecked
from tests.manifests.kustomize import K8S, KUBECTL, OVERLAYS, Refused, faults, written
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
STANDARD = (f"Secret/{SECRET}", "ServiceAccount/toolwise-models")
"""Made by whoever runs the cluster, and by the chart."""

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


def test_the_bases_files_keep_the_rules_as_they_stand() -> None:
    assert faults(written(K8S / "base")) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_that_ask_for_more_than_restricted_are_refused(overlay: str) -> None:
    labels = named(built(K8S / overlay), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


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
    ("right", "typo"),
    [
        ("name: toolwise-torch", "name: toolwise-tourch"),
        ("path: serving-nodes.yaml", "path: serving-node.yaml"),
        ("../../base", "../../bases"),
    ],
)
def test_a_typo_in_an_overlay_does_not_build_to_the_same(
    tmp_path: Path, right: str, typo: str
) -> None:
    intended = built(K8S / "overlays/gpu")
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s/overlays/gpu/kustomization.yaml"
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, typo))
    with contextlib.suppress(Refused):
        assert built(path.parent) != intended


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
    assert check(made, STANDARD) == []


def test_the_endpoint_is_what_deploy_would_apply() -> None:
    [endpoint] = written(K8S / "endpoint")
    assert endpoint == published_endpoint()
    serving_runtime = named(written(K8S / "base"), "ServingRuntime")
    assert endpoint["spec"]["predictor"]["model"]["runtime"] == serving_runtime["metadata"]["name"]
    assert check([endpoint, serving_runtime], STANDARD) == []


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


@pytest.mark.parametrize("example", ["external-secret", "sealed-secret"])
def test_the_examples_make_the_secret_that_profiles_name_with_all_its_keys(example: str) -> None:
    profile, cluster = large()
    serper = SearchSettings.model_validate({"text": {"backend": "serper"}})
    asking = inference_service(
        profile.serve.model_copy(update={"search": serper}), cluster, "s3://m/1", "s3://m/corpus"
    )
    runtime_here = named(written(K8S / "base"), "ServingRuntime")
    documents = read((K8S / f"examples/{example}.yaml").read_text())
    account = "ServiceAccount/toolwise-models"
    assert check([asking, runtime_here, *documents], [account]) == []
    assert any(SECRET in fault for fault in check([asking, runtime_here], [account]))


def test_what_lint_leaves_out_without_kubectl_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kustomize, "KUBECTL", "/usr/bin/kubectl")
    assert unchecked() == ""
    monkeypatch.setattr(kustomize, "KUBECTL", None)
    said = unchecked()
    assert said.startswith("NOT CHECKED: k8s/overlays/kind, k8s/overlays/gpu: kubectl")
    assert "\n" not in said
