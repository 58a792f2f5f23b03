"""A training step on a cluster: the TrainJob it makes, and what it does until that has ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import boto3
import pytest
import torch
from kubeflow_trainer_api import models
from kubernetes import client as k8s
from kubernetes_server import DEPLOYMENTS, JOBS, RUNNING, SERVICES, KubernetesServer, condition
from kubernetes_server import Cluster as Kubernetes
from mlflow.tracking import MlflowClient
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file
from toy_training import trajectories, write_base

from tests.manifests.schemas import schema_faults
from toolwise.data.parquet import write_trajectories
from toolwise.errors import BackendError, InputError
from toolwise.kubernetes.toleration import Toleration
from toolwise.steps import node, run_step
from toolwise.steps.node import Word, word_in
from toolwise.storage import content_digest, local_copy, publish
from toolwise.tools import tool_schemas
from toolwise.training.hardware import HardwareSettings
from toolwise.training.launcher import following
from toolwise.training.launcher.cluster import CLUSTER_VARIABLE, Cluster
from toolwise.training.launcher.following import TrainJobs
from toolwise.training.launcher.trainjob import NodeWork, job_name, train_job
from toolwise.training.launcher.vllm_servers import server_address, server_objects
from toolwise.training.settings import HdpoSettings, SftSettings
from toolwise.training.sft import train_sft

HARDWARE = HardwareSettings(gpu="h100-80gb", nodes=2, vllm="server", vllm_gpus=4)
CLUSTER = Cluster(
    image="ghcr.io/toolwise/trainer:1",
    exchange="s3://toolwise/training",
    accelerator="nvidia.com/gpu",
    cpu="32",
    memory="256Gi",
    secret="toolwise-storage",
    secret_keys=("AWS_ACCESS_KEY_ID",),
    vllm_image="ghcr.io/toolwise/rollout:1",
    node_selector={"gpu": "h100"},
    tolerations=(Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
)
TOLERATED = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
WORK = NodeWork(
    step="train-hdpo",
    settings="{}",
    seed=3,
    inputs={"model": "s3://toolwise/training/inputs/0/model"},
    output="s3://toolwise/training/outputs/train-hdpo-0",
)


def a_job(**cluster: Any) -> models.TrainerV1alpha1TrainJob:
    return train_job("train-hdpo-0", WORK, 8, HARDWARE, CLUSTER.model_copy(update=cluster))


@pytest.fixture
def kubernetes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Kubernetes]]:
    servers: list[KubernetesServer] = []

    def start(**behaviour: Any) -> Kubernetes:
        server = KubernetesServer(Kubernetes(**behaviour))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.write_kubeconfig(tmp_path / "kubeconfig")
        return server.cluster

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    monkeypatch.setattr("toolwise.retry.FIRST_WAIT", 0.01)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def followed(jobs: TrainJobs, name: str = "train-hdpo-0") -> list[str]:
    lines: list[str] = []
    jobs.follow(name, lines.append)
    return lines


# What it is made of


def test_trainers_schema_and_models_know_every_field_and_would_refuse_a_typo() -> None:
    job = a_job().to_dict()
    assert [*schema_faults(job)] == []
    job["spec"]["trainer"]["numNode"] = 2
    assert [*schema_faults(job)]


def test_every_node_gets_the_profiles_gpus_and_the_same_work() -> None:
    spec = a_job().to_dict()["spec"]
    trainer = spec["trainer"]
    assert spec["runtimeRef"]["name"] == "toolwise-torch"
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    assert trainer["command"] == ["torchrun", "-m", "toolwise.steps.node"]
    assert NodeWork.model_validate_json(trainer["args"][0]) == WORK
    secret = {"name": "toolwise-storage", "key": "AWS_ACCESS_KEY_ID"}
    region = {"name": "toolwise-storage", "key": "AWS_DEFAULT_REGION", "optional": True}
    taken = [variable.get("valueFrom") for variable in trainer["env"]]
    assert {"secretKeyRef": secret} in taken
    assert {"secretKeyRef": region} in taken


def test_its_pods_run_on_the_profiles_nodes() -> None:
    [patch] = a_job().to_dict()["spec"]["runtimePatches"]
    [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert job["name"] == "node"
    assert pod == {"nodeSelector": {"gpu": "h100"}, "tolerations": TOLERATED}
    assert "runtimePatches" not in a_job(node_selector={}, tolerations=()).to_dict()["spec"]


def test_its_images_and_its_servers_are_pulled_with_the_profiles_secret() -> None:
    job = a_job(image_pull_secret="registry", node_selector={}, tolerations=()).to_dict()
    assert [*schema_faults(job)] == []
    [patch] = job["spec"]["runtimePatches"]
    [nodes] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = nodes["template"]["spec"]["template"]["spec"]
    assert pod == {"imagePullSecrets": [{"name": "registry"}]}
    owner = job | {"metadata": job["metadata"] | {"uid": "uid-0"}}
    cluster = CLUSTER.model_copy(update={"image_pull_secret": "registry"})
    deployment, _ = server_objects("train-hdpo-0", owner, "s3://model", HARDWARE, cluster)
    made = k8s.ApiClient().sanitize_for_serialization(deployment)
    assert made["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_the_name_is_the_works_own() -> None:
    one, same, other = (job_name("train-sft", {"seed": seed}) for seed in (1, 1, 2))
    assert one == same != other
    assert len(one) <= 30


def test_a_server_beside_it_is_told_to_the_trainers_and_goes_with_the_job() -> None:
    address = server_address("train-hdpo-0")
    job = train_job("train-hdpo-0", WORK, 8, HARDWARE, CLUSTER, address).to_dict()
    told = {"name": "TOOLWISE_VLLM_SERVER", "value": "http://train-hdpo-0-vllm:8000"}
    assert told in job["spec"]["trainer"]["env"]
    owner = job | {"metadata": job["metadata"] | {"uid": "uid-0"}}
    deployment, service = (
        k8s.ApiClient().sanitize_for_serialization(made)
        for made in server_objects("train-hdpo-0", owner, WORK.inputs["model"], HARDWARE, CLUSTER)
    )
    for made in (deployment, service):
        assert [*schema_faults(made)] == []
        assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-0"
    pod = deployment["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"gpu": "h100"}, TOLERATED)
    [container] = pod["containers"]
    assert "--tensor-parallel-size=4" in container["command"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    assert address == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


# Starting and following it


def test_it_is_created_and_followed_line_by_line_to_its_end(kubernetes) -> None:
    cluster = kubernetes(
        statuses=[RUNNING, RUNNING, RUNNING, condition("Complete")], log=["one", "two", "three"]
    )
    jobs = TrainJobs(poll=0)
    assert jobs.start(a_job())["metadata"]["uid"] == "uid-train-hdpo-0"
    assert followed(jobs) == ["one", "two", "three"]
    assert [path for path, _ in cluster.made] == [JOBS]


def test_one_that_runs_already_is_followed_and_not_made_again(kubernetes) -> None:
    cluster = kubernetes(statuses=[RUNNING, RUNNING, condition("Complete")])
    first, second = TrainJobs(poll=0), TrainJobs(poll=0)
    first.start(a_job())
    second.start(a_job())
    followed(second)
    assert len(cluster.made) == 1


def test_a_conflict_is_resolved_by_following_what_is_there(kubernetes, monkeypatch) -> None:
    cluster = kubernetes(statuses=[condition("Complete")])
    jobs = TrainJobs(poll=0)
    there, look = jobs.start(a_job()), jobs._get
    answers = iter([None])  # it comes into being between the look and the request
    monkeypatch.setattr(jobs, "_get", lambda name: next(answers, look(name)))
    assert jobs.start(a_job())["metadata"] == there["metadata"]
    assert [path for path, _ in cluster.made] == [JOBS, JOBS]
    followed(jobs)


def test_one_that_had_failed_is_replaced(kubernetes) -> None:
    cluster = kubernetes(statuses=[condition("Failed"), condition("Complete")])
    jobs = TrainJobs(poll=0)
    jobs.start(a_job())
    jobs.start(a_job())
    assert cluster.deleted == ["train-hdpo-0"]
    assert len(cluster.made) == 2
    followed(jobs)


def test_a_failure_is_told_with_its_reason_and_the_last_lines(kubernetes) -> None:
    failed = condition("Failed", "PodFailurePolicy", "exit code 137")
    kubernetes(statuses=[RUNNING, failed], log=["loading", "CUDA out of memory"])
    jobs = TrainJobs(poll=0)
    jobs.start(a_job())
    with pytest.raises(BackendError) as caught:
        followed(jobs)
    message = str(caught.value)
    assert "TrainJob train-hdpo-0 failed: PodFailurePolicy: exit code 137" in message
    assert message.endswith("CUDA out of memory")


def test_an_error_of_another_node_than_the_first_is_told(kubernetes) -> None:
    failed, refused = condition("Failed", "JobFailed", "exit status 1"), "Error: does not fit on 8"
    kubernetes(
        statuses=[RUNNING, failed],
        log=["loading", "connection lost"],
        logs=["", f"loading\n{refused}\ntorchrun: failed"],
    )
    jobs = TrainJobs(poll=0)
    jobs.start(a_job())
    with pytest.raises(BackendError) as caught:
        followed(jobs)
    assert str(caught.value).endswith(f"exit status 1\n    {refused}")


def test_one_that_vanished_is_told(kubernetes) -> None:
    kubernetes(vanish_after=2)
    jobs = TrainJobs(poll=0)
    jobs.start(a_job())
    with pytest.raises(BackendError, match="is gone: somebody deleted it"):
        followed(jobs)


def test_one_that_never_starts_is_given_up_with_the_reason(kubernetes) -> None:
    kubernetes(waiting={"reason": "Unschedulable", "message": "0/3 nodes: no nvidia.com/gpu"})
    jobs = TrainJobs(poll=0, patience=0.05)
    jobs.start(a_job())
    with pytest.raises(
        BackendError, match=r"no sign of life for 0\.05 .*Unschedulable: 0/3 nodes: no nvidia"
    ):
        followed(jobs)


def test_faults_of_the_api_are_passed_over(kubernetes) -> None:
    kubernetes(statuses=[condition("Complete")], faults=3)
    jobs = TrainJobs(poll=0)
    jobs.start(a_job())
    followed(jobs)


def test_a_refusal_names_the_cluster_and_the_reason(kubernetes) -> None:
    kubernetes()
    with pytest.raises(BackendError, match=r"Kubernetes at http://127.* refused: 403 .*Forbidden"):
        TrainJobs(poll=0).start(a_job(image="forbidden"))


def test_a_server_beside_it_is_put_once(kubernetes) -> None:
    cluster = kubernetes(statuses=[RUNNING])
    jobs = TrainJobs(poll=0)
    owner = jobs.start(a_job())
    jobs.put(*server_objects("train-hdpo-0", owner, WORK.inputs["model"], HARDWARE, CLUSTER))
    assert [path for path, _ in cluster.made] == [JOBS, DEPLOYMENTS, SERVICES]


def test_cancelling_deletes_it_and_is_done_where_there_is_none(kubernetes) -> None:
    cluster = kubernetes()
    jobs = TrainJobs(poll=0)
    jobs.start(a_job())
    jobs.cancel("train-hdpo-0")
    jobs.cancel("train-hdpo-0")
    assert cluster.deleted == ["train-hdpo-0"]


def test_without_a_cluster_the_error_says_so(tmp_path: Path, monkeypatch) -> None:
    missing = str(tmp_path / "none")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", missing)
    with pytest.raises(BackendError, match="no Kubernetes cluster to train on"):
        TrainJobs()


def test_the_first_process_speaks_in_lines_a_follower_understands() -> None:
    word = Word(metrics={"loss": 0.5}, step=3)
    assert word_in("toolwise: " + word.model_dump_json(exclude_defaults=True)) == word
    assert word_in("toolwise: not for machines") is None
    assert word_in("Loading checkpoint shards") is None


# The step, from its pod to the checkpoint


@pytest.fixture
def step_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kubernetes) -> Iterator[Path]:
    """The environment of a training step's pod, with S3, and its inputs."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TOOLWISE_WORK": str(tmp_path / "work"),
        CLUSTER_VARIABLE: CLUSTER.model_dump_json(),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(following, "POLL", 0.05)
    boto3.client("s3").create_bucket(Bucket="toolwise")
    write_base(tmp_path / "base")
    (tmp_path / "curated").mkdir()
    write_trajectories(tmp_path / "curated" / "curated.parquet", trajectories() * 2)
    yield tmp_path
    server.stop()


def settings(**changes: Any) -> str:
    one = HardwareSettings(gpu="h100-80gb", context_tokens=512)
    made = SftSettings(steps=2, batch_size=2, warmup_steps=1, hardware=one)
    return made.model_copy(update=changes).model_dump_json()


def train(folder: Path, text: str) -> Path:
    inputs = {"model": str(folder / "base"), "curated": str(folder / "curated")}
    return run_step("train-sft", text, 0, **inputs).outputs["checkpoint"]


def test_the_steps_pod_has_the_trainjob_train_and_gets_the_checkpoint(
    step_pod: Path, kubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = kubernetes(execute=True)
    checkpoint = train(step_pod, settings())
    assert (checkpoint / "model.safetensors").exists()
    assert len((checkpoint / "train_log.jsonl").read_text().splitlines()) == 2
    assert [path for path, _ in cluster.made] == [JOBS]
    shown = capfd.readouterr().out
    assert "train-sft on 1 × h100-80gb: memory of one GPU" in shown
    assert "train-sft: progress 2/2 loss" in shown


def test_two_nodes_train_together_on_one_volume_and_the_first_publishes(
    step_pod: Path, kubernetes
) -> None:
    cluster = kubernetes(execute=True)
    two = HardwareSettings(gpu="h100-80gb", context_tokens=512, nodes=2)
    together = train(step_pod, settings(hardware=two))
    [(_, job)] = cluster.made
    assert job["spec"]["trainer"]["numNodes"] == 2
    first, second = cluster.logs
    assert first.count("toolwise: {") == 4  # metrics and progress of either step, told once
    assert "toolwise: {" not in second
    base, curated = step_pod / "base", step_pod / "curated" / "curated.parquet"
    alone = SftSettings.model_validate_json(settings())
    train_sft(base, curated, step_pod / "alone", alone, tools=tool_schemas(None))
    expected = load_file(step_pod / "alone" / "model.safetensors")
    for name, weight in load_file(together / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)


def test_checkpoints_that_are_kept_come_back_too_and_are_logged_with_step_and_address(
    step_pod: Path, kubernetes
) -> None:
    kubernetes(execute=True)
    checkpoint = train(step_pod, settings(checkpoint_every=1, keep_checkpoints=2))
    client = MlflowClient(f"sqlite:///{step_pod}/mlflow.db")
    experiment = client.get_experiment_by_name("toolwise")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "attributes.run_name = 'train-sft'")
    assert run.outputs is not None
    logged = {
        output.step: client.get_logged_model(output.model_id)
        for output in run.outputs.model_outputs
    }
    assert sorted(logged) == [1, 2]
    assert logged[2].tags["toolwise.digest"] == content_digest(checkpoint)
    kept = logged[1].params["checkpoint"]
    assert kept.startswith("s3://toolwise/")
    assert kept.endswith("-kept/step-1")
    assert (local_copy(kept) / "model.safetensors").exists()


def test_a_training_too_short_to_keep_checkpoints_is_none_that_failed(
    step_pod: Path, kubernetes
) -> None:
    kubernetes(execute=True)
    checkpoint = train(step_pod, settings(checkpoint_every=2, keep_checkpoints=2))
    assert (checkpoint / "model.safetensors").exists()


def test_a_failed_training_fails_the_step_with_what_it_said(step_pod: Path, kubernetes) -> None:
    kubernetes(execute=True)
    write_trajectories(step_pod / "curated" / "curated.parquet", [])
    with pytest.raises(BackendError, match=r"(?s)failed: JobFailed: .*holds no trajectory"):
        train(step_pod, settings())


def test_what_cannot_fit_is_refused_before_anything_is_started(step_pod: Path, kubernetes) -> None:
    cluster = kubernetes()
    with pytest.raises(InputError, match="does not fit on 1 × h100-80gb"):
        train(step_pod, settings(batch_size=2**20))
    assert cluster.made == []


def test_without_a_cluster_gpus_that_are_not_here_are_missed(
    step_pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CLUSTER_VARIABLE)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError, match=r"trains on 1 × h100-80gb and this machine has no GPUs"):
        train(step_pod, settings())


def test_a_node_without_the_profiles_gpus_says_so_before_it_trains(
    step_pod: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    work = NodeWork(
        step="train-sft",
        settings=settings(),
        seed=0,
        inputs={"model": str(step_pod / "base"), "curated": str(step_pod / "curated")},
        output=str(step_pod / "published"),
    )
    assert node.main([work.model_dump_json()]) == 1
    assert f"{following.ERROR}the profile trains on 1 × h100-80gb" in capsys.readouterr().err
    assert not (step_pod / "published").exists()


@pytest.mark.parametrize("vllm", ["server", "colocated"])
@pytest.mark.parametrize("ending", ["Complete", "Failed"])
def test_gpus_of_a_server_beside_it_are_given_back_at_the_end(
    step_pod: Path, kubernetes, ending: str, vllm: Literal["server", "colocated"]
) -> None:
    """The server goes with its `TrainJob`; without one, its pods stay to be looked at."""
    cluster = kubernetes(statuses=[RUNNING])
    hardware = HardwareSettings(gpu="h100-80gb", context_tokens=512, vllm=vllm)
    made = HdpoSettings(steps=1, keep_checkpoints=1, hardware=hardware)
    (step_pod / "corpus.jsonl").write_text("{}")
    inputs = {"model": "base", "curated": "curated", "corpus": "corpus.jsonl"}

    def publish_once_followed() -> None:
        if cluster.looked.wait(600):
            publish(step_pod / "base", f"{CLUSTER.exchange}/outputs/{next(iter(cluster.jobs))}")
            cluster.statuses.append(condition(ending))

    publishing = threading.Thread(target=publish_once_followed)
    publishing.start()
    with nullcontext() if ending == "Complete" else pytest.raises(BackendError, match="failed"):
        paths = {name: str(step_pod / path) for name, path in inputs.items()}
        step = run_step("train-hdpo", made.model_dump_json(), 0, **paths)
        assert (step.outputs["checkpoint"] / "model.safetensors").exists()
    publishing.join()
    names = [body["metadata"]["name"] for path, body in cluster.made if path == JOBS]
    assert [path for path, _ in cluster.made[1:]] == [DEPLOYMENTS, SERVICES] * (vllm == "server")
    assert cluster.deleted == names * (vllm == "server")


def test_a_step_that_is_told_to_stop_deletes_its_trainjob(step_pod: Path, kubernetes) -> None:
    cluster = kubernetes()

    def stop_once_followed() -> None:
        if cluster.looked.wait(600):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_followed, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        train(step_pod, settings())
    assert stopped.value.code == 143
    [(_, job)] = cluster.made
    assert cluster.deleted == [job["metadata"]["name"]]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
