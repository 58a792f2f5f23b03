"""The compiled pipeline: valid, the same bytes each time, described, and with pods that can run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components as kfp_components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from pydantic import ValidationError

from pipelines.metis import LABELS, STEPS, compile_pipeline, step_names
from toolwise.kubernetes.toleration import Toleration
from toolwise.profile import Profile, load_profile, profile_names
from toolwise.serving.settings import KEY_VARIABLE
from toolwise.training.launcher.cluster import CLUSTER_VARIABLE, Cluster

ROOT = Path(__file__).parents[2]
CLUSTER_PROFILES = [name for name in profile_names() if load_profile(name).kubeflow is not None]
LIGHT = ("prepare-data", "base-model", "gather", "promote", "deploy", "report", "finish")
"""On a cluster, whose profiles fetch the base model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled(folder: Path):
    @cache
    def once(name: str) -> list[dict[str, Any]]:
        path = folder / f"{name}.yaml"
        compile_pipeline(load_profile(name), path)
        return list(yaml.load_all(path.read_text(), yaml.CSafeLoader))

    return once


def executors(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = spec["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in found.items()}


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tasks that run something, by name."""
    dags = [spec["root"], *spec["components"].values()]
    return {
        name: task
        for dag in dags
        for name, task in dag.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): pod for name, pod in found.items()}


def is_light(task: str) -> bool:
    return re.sub(r"-\d+$", "", task) in LIGHT


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container.get("env", ())}


@pytest.mark.parametrize("name", profile_names())
def test_a_compiled_profile_is_valid_against_the_pipeline_spec(name: str, compiled, folder: Path):
    documents = compiled(name)
    spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    assert spec.pipeline_info.name == f"metis-{name}"
    if len(documents) > 1:
        platform = json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
        for label, executor in platform.platforms["kubernetes"].deployment_spec.executors.items():
            config = json_format.MessageToDict(executor)
            json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
            assert label in spec.deployment_spec["executors"], label
    loaded = kfp_components.load_component_from_file(str(folder / f"{name}.yaml"))
    assert loaded.pipeline_spec == spec
    broken = json.loads(json.dumps(documents[0]).replace("cachingOptions", "cacheOptions"))
    with pytest.raises(json_format.ParseError, match="cacheOptions"):
        json_format.ParseDict(broken, pipeline_spec_pb2.PipelineSpec())


COMPILE = """
import sys
from pathlib import Path
from pipelines.metis import compile_pipeline
from toolwise.profile import load_profile
for name in sys.argv[2:]:
    compile_pipeline(load_profile(name), Path(sys.argv[1]) / f"{name}.yaml")
"""


def test_another_process_with_another_hash_seed_compiles_the_same_bytes(
    compiled, folder: Path, tmp_path: Path
):
    names = ("demo", "qwen3-vl-2b")
    subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path), *names],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        check=True,
    )
    for name in names:
        compiled(name)
        assert (tmp_path / f"{name}.yaml").read_bytes() == (folder / f"{name}.yaml").read_bytes()


def described(spec: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Every input of the pipeline and of its components, and whether it is described."""
    holders = {"the pipeline": spec["root"]} | {
        name: component
        for name, component in spec["components"].items()
        if "executorLabel" in component
    }
    for holder, component in holders.items():
        for kind in component.get("inputDefinitions", {}).values():
            for name, definition in kind.items():
                yield f"{holder}.{name}", len(definition.get("description", "")) > 5


@pytest.mark.parametrize("name", profile_names())
def test_every_input_of_the_pipeline_and_of_its_components_is_described(name: str, compiled):
    found = dict(described(compiled(name)[0]))
    assert "the pipeline.seed" in found
    assert "comp-finish.status" in found
    assert [one for one, ok in found.items() if not ok] == []


def test_every_step_is_in_the_pipeline(compiled):
    kinds = {re.sub(r"-\d+$", "", name) for name in executors(compiled("demo")[0])}
    assert kinds == {step.split()[0] for step in STEPS} | {"finish"}
    assert len([name for name in executors(compiled("demo")[0]) if "evaluate" in name]) == 3


def test_the_seed_is_the_only_parameter(compiled):
    inputs = compiled("demo")[0]["root"]["inputDefinitions"]
    assert list(inputs) == ["parameters"]
    assert list(inputs["parameters"]) == ["seed"]


def test_deployment_stands_behind_the_promotion(compiled):
    components = compiled("demo")[0]["components"]
    holders = [
        name for name, c in components.items() if "deploy" in c.get("dag", {}).get("tasks", {})
    ]
    assert len(holders) == 1
    branches = components["comp-condition-branches-2"]["dag"]["tasks"]
    condition = branches[holders[0].removeprefix("comp-")]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--promote-Output'] == true"


def test_a_step_knows_its_own_settings_only(compiled):
    inputs = tasks(compiled("demo")[0])["train-sft"]["inputs"]
    settings = inputs["parameters"]["settings"]["runtimeValue"]["constant"]
    assert settings == load_profile("demo").sft.model_dump_json()


@pytest.mark.parametrize("name", profile_names())
def test_steps_whose_inputs_define_their_outputs_are_cached_and_no_others(name: str, compiled):
    for task, content in tasks(compiled(name)[0]).items():
        cached = content["cachingOptions"].get("enableCache", False)
        kind = re.sub(r"-\d+$", "", task)
        assert cached == (kind not in ("promote", "deploy", "report", "finish")), task


@pytest.mark.parametrize("name", CLUSTER_PROFILES)
def test_on_a_cluster_every_step_but_deployment_is_tried_again_with_growing_waits(
    name: str, compiled
):
    for task, content in tasks(compiled(name)[0]).items():
        policy = content.get("retryPolicy")
        if task == "deploy":
            assert policy is None
        else:
            assert policy["maxRetryCount"] == 3, task
            assert policy["backoffFactor"] == 2.0, task
            assert policy["backoffDuration"] == "60s", task


@pytest.mark.parametrize("name", CLUSTER_PROFILES)
def test_each_pod_has_its_image_limits_tracking_and_sandbox(name: str, compiled):
    kubeflow = load_profile(name).kubeflow
    assert kubeflow is not None
    for task, container in executors(compiled(name)[0]).items():
        told = variables(container)
        light = is_light(task) or CLUSTER_VARIABLE in told
        assert container["image"] == (kubeflow.operator_image if light else kubeflow.image), task
        resources = container["resources"]
        for kind in ("Cpu", "Memory"):
            assert resources[f"resource{kind}Limit"] == resources[f"resource{kind}Request"], task
        assert ("accelerator" in resources) == (not light), task
        assert told["MLFLOW_TRACKING_URI"] == kubeflow.tracking_uri
        assert told["MLFLOW_EXPERIMENT_NAME"] == name
        assert told["TOOLWISE_SANDBOX"] == kubeflow.sandbox


@pytest.mark.parametrize("name", CLUSTER_PROFILES)
def test_each_pod_runs_as_nobody_special_and_writes_to_volumes_of_its_own(name: str, compiled):
    documents = compiled(name)
    assert set(pods(documents)) == set(executors(documents[0]))
    for task, pod in pods(documents).items():
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsNonRoot": True}, task
        mounted = {one["mountPath"]: one for one in pod["emptyDirMounts"]}
        assert mounted["/tmp"].get("medium") is None
        trains_here = "accelerator" in executors(documents[0])[task]["resources"]
        assert ("/dev/shm" in mounted) == trains_here, task
        if trains_here:
            assert mounted["/dev/shm"]["medium"] == "Memory"
            assert mounted["/dev/shm"]["sizeLimit"] == "16Gi"
        run = [{"name": "TOOLWISE_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}]
        assert pod["fieldPathAsEnv"] == run


@pytest.mark.parametrize("name", CLUSTER_PROFILES)
def test_secrets_come_from_a_secret_and_stand_nowhere_in_what_is_compiled(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    values = {
        key: f"value-of-{key}"
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "KFP_TOKEN")
    }
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    path = folder / f"secrets-{name}.yaml"
    compile_pipeline(load_profile(name), path)
    text = path.read_text()
    assert not [value for value in values.values() if value in text]
    spec, platform = yaml.load_all(text, yaml.CSafeLoader)
    for task, pod in pods([spec, platform]).items():
        assert {one["secretName"] for one in pod["secretAsEnv"]} == {"toolwise-storage"}
        given = {
            key["envVar"]: one["optional"] for one in pod["secretAsEnv"] for key in one["keyToEnv"]
        }
        assert given["AWS_SECRET_ACCESS_KEY"] is False, task
        assert given["HF_TOKEN"] is given["AWS_DEFAULT_REGION"] is True, task
    for task in tasks(spec).values():
        parameters = task.get("inputs", {}).get("parameters", {})
        assert not [one for one in parameters if "key" in one.lower() or "token" in one.lower()]


def test_only_the_deployment_has_the_key_of_an_endpoint_that_wants_one(tmp_path: Path, compiled):
    profile = load_profile("qwen3-vl-8b").model_dump(mode="json")
    profile["serve"]["keys"] = "/etc/toolwise/keys.yaml"
    profile["kubeflow"]["serving"]["keys_secret"] = "toolwise-keys"
    compile_pipeline(Profile.model_validate(profile), tmp_path / "keyed.yaml")
    keyed = pods(list(yaml.load_all((tmp_path / "keyed.yaml").read_text(), yaml.CSafeLoader)))

    def holders(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
        return {
            task: given["optional"]
            for task, pod in found.items()
            for given in pod["secretAsEnv"]
            for key in given["keyToEnv"]
            if key["envVar"] == KEY_VARIABLE
        }

    assert holders(keyed) == {"deploy": False}
    assert holders(pods(compiled("qwen3-vl-8b"))) == {}


def test_training_steps_are_told_of_the_cluster_and_leave_its_gpus_to_their_trainjob(compiled):
    for name in ("train-sft", "train-hdpo"):
        container = executors(compiled("qwen3-vl-8b")[0])[name]
        assert "accelerator" not in container["resources"]
        cluster = Cluster.model_validate_json(variables(container)[CLUSTER_VARIABLE])
        assert cluster.exchange == "s3://toolwise/training"
        assert cluster.sandbox == "http://toolwise-sandbox.toolwise.svc:8080"
        assert "AWS_SECRET_ACCESS_KEY" in cluster.secret_keys


def test_without_an_exchange_a_training_step_has_the_gpus_itself(compiled):
    container = executors(compiled("qwen3-vl-2b")[0])["train-hdpo"]
    assert container["resources"]["accelerator"]["resourceCount"] == "1"
    assert CLUSTER_VARIABLE not in variables(container)


def test_each_benchmark_is_answered_in_a_pod_of_its_own_and_gathered(compiled):
    spec = compiled("qwen3-vl-8b")[0]
    profile = load_profile("qwen3-vl-8b")
    assert profile.data.published is not None
    loops = {
        name: task
        for component in spec["components"].values()
        for name, task in component.get("dag", {}).get("tasks", {}).items()
        if "parameterIterator" in task
    }
    assert len(loops) == 3
    for loop in loops.values():
        items = yaml.safe_load(loop["parameterIterator"]["items"]["raw"])
        assert items == sorted(one.path for one in profile.data.published.benchmark)
    # One GPU of eight, and an eighth of 32 cores and 256 GiB.
    resources = executors(spec)["answer"]["resources"]
    assert resources["accelerator"]["resourceCount"] == "1"
    assert resources["resourceCpuLimit"] == "4000m"
    assert resources["resourceMemoryLimit"] == "32768Mi"
    gathered = tasks(spec)["gather-3"]["inputs"]["artifacts"]["answers"]["taskOutputArtifact"]
    assert gathered["producerTask"] in loops
    assert tasks(spec)["promote"]["inputs"]["artifacts"]["challenger"] == {
        "taskOutputArtifact": {"outputArtifactKey": "evaluation", "producerTask": "gather-3"}
    }
    assert not [name for name in executors(spec) if name.startswith("evaluate")]
    assert set(LABELS.values()) <= set(step_names(profile))
    assert set(step_names(load_profile("demo"))) == set(STEPS)


def changed(**kubeflow: Any) -> Profile:
    profile = load_profile("qwen3-vl-2b")
    content = profile.model_dump(mode="json")
    content["kubeflow"] |= kubeflow
    return Profile.model_validate(content)


@pytest.mark.parametrize(
    ("vllm", "processes", "answering", "curating"),
    [
        # Without vLLM a GPU per process, and a curation has one process.
        (None, 1, "1", "1"),
        (None, 4, "4", "1"),
        (None, 16, "8", "1"),
        ({"gpus": 1}, 4, "1", "1"),
        ({"gpus": 2}, 1, "2", "2"),
    ],
)
def test_a_step_in_which_a_model_answers_has_the_gpus_it_answers_on(
    vllm: dict[str, int] | None, processes: int, answering: str, curating: str, tmp_path: Path
):
    profile = load_profile("qwen3-vl-8b").model_dump(mode="json") | {"vllm": vllm}
    for section in ("curate_sft", "curate_rl", "evaluate"):
        del profile[section]["vllm"]
    profile["evaluate"]["processes"] = processes
    compile_pipeline(Profile.model_validate(profile), tmp_path / "changed.yaml")
    containers = executors(next(yaml.safe_load_all((tmp_path / "changed.yaml").read_text())))
    for step, gpus in (("answer", answering), ("curate-sft", curating), ("curate-rl", curating)):
        resources = containers[step]["resources"]
        assert resources["accelerator"]["resourceCount"] == gpus
        # Each GPU of eight comes with an eighth of 32 cores.
        cores = resources["resourceCpuLimit"]
        assert cores == ("32" if gpus == "8" else f"{4000 * int(gpus)}m")


def test_vllm_has_no_more_gpus_than_a_step():
    profile = load_profile("qwen3-vl-2b").model_dump(mode="json") | {"vllm": {"gpus": 2}}
    with pytest.raises(
        ValidationError, match=r"vllm\.gpus 2 is more than kubeflow\.accelerators 1"
    ):
        Profile.model_validate(profile)


@pytest.mark.parametrize("name", CLUSTER_PROFILES)
def test_steps_with_gpus_run_on_the_tainted_nodes_that_the_overlay_is_for(name: str, compiled):
    overlay = yaml.safe_load((ROOT / "k8s/overlays/gpu/serving-nodes.yaml").read_text())
    documents = compiled(name)
    found = pods(documents)
    for task, container in executors(documents[0]).items():
        if "accelerator" in container["resources"]:
            assert found[task]["tolerations"] == overlay["spec"]["tolerations"], task
        elif CLUSTER_VARIABLE in variables(container):
            told = Cluster.model_validate_json(variables(container)[CLUSTER_VARIABLE])
            given = [one.model_dump(exclude_none=True) for one in told.tolerations]
            assert given == overlay["spec"]["tolerations"], task


@pytest.mark.parametrize("name", CLUSTER_PROFILES)
def test_models_answer_by_vllm_up_to_the_longest_conversation_of_training(name: str):
    profile = load_profile(name)
    assert profile.vllm is not None
    assert profile.hardware is not None
    assert profile.vllm.context_tokens == profile.hardware.context_tokens
    assert (
        profile.evaluate.vllm == profile.curate_sft.vllm == profile.curate_rl.vllm == profile.vllm
    )


def test_a_training_hands_its_nodes_and_pull_secret_on_to_the_trainjob(tmp_path: Path):
    profile = load_profile("qwen3-vl-8b").model_dump(mode="json")
    tolerated = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    profile["kubeflow"] |= {"node_selector": {"gpu": "h100"}, "tolerations": [tolerated]}
    profile["kubeflow"]["image_pull_secret"] = "registry"
    compile_pipeline(Profile.model_validate(profile), tmp_path / "changed.yaml")
    documents = list(yaml.safe_load_all((tmp_path / "changed.yaml").read_text()))
    told = variables(executors(documents[0])["train-hdpo"])[CLUSTER_VARIABLE]
    cluster = Cluster.model_validate_json(told)
    assert cluster.node_selector == {"gpu": "h100"}
    assert cluster.tolerations == (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),)
    assert cluster.image_pull_secret == "registry"
    # The pod that follows it needs no GPU, so it runs anywhere.
    assert "nodeSelector" not in pods(documents)["train-hdpo"]


def test_nodes_pull_secret_and_shared_memory_are_the_profiles(tmp_path: Path):
    profile = changed(
        node_selector={"gpu": "h100"},
        tolerations=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
        image_pull_secret="registry",
        shared_memory="64Gi",
    )
    compile_pipeline(profile, tmp_path / "changed.yaml")
    found = pods(list(yaml.load_all((tmp_path / "changed.yaml").read_text(), yaml.CSafeLoader)))
    trains, reports = found["train-hdpo"], found["report"]
    assert trains["nodeSelector"]["labels"] == {"gpu": "h100"}
    assert trains["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert trains["emptyDirMounts"][1]["sizeLimit"] == "64Gi"
    assert "nodeSelector" not in reports
    for pod in found.values():
        assert [one["secretName"] for one in pod["imagePullSecret"]] == ["registry"]


@pytest.mark.parametrize("name", ["demo", "smoke"])
def test_a_local_profile_names_no_cluster_resources(name: str, compiled):
    documents = compiled(name)
    assert len(documents) == 1
    containers = executors(documents[0]).values()
    assert not any("resources" in c or "env" in c for c in containers)
    assert not any("retryPolicy" in task for task in tasks(documents[0]).values())
