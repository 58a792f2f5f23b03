"""The pipeline compiles to the same bytes, has every step, and deploys only behind the gate."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.metis import STEPS, compile_pipeline
from toolwise.profile import load_profile, profile_names
from toolwise.training.launcher.cluster import CLUSTER_VARIABLE, Cluster


def compiled(name: str, folder: Path) -> list[dict[str, Any]]:
    path = folder / f"{name}.yaml"
    compile_pipeline(load_profile(name), path)
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_compiles_to_the_same_bytes_each_time(name: str, tmp_path: Path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    compile_pipeline(load_profile(name), first)
    compile_pipeline(load_profile(name), second)
    assert first.read_bytes() == second.read_bytes()


def test_every_step_is_in_the_pipeline(tmp_path: Path):
    executors = compiled("demo", tmp_path)[0]["deploymentSpec"]["executors"]
    kinds = {name.removeprefix("exec-").rstrip("-23") for name in executors}
    assert kinds == {step.split()[0] for step in STEPS} | {"finish"}
    assert len([name for name in executors if name.startswith("exec-evaluate")]) == 3


def test_the_seed_is_the_only_parameter(tmp_path: Path):
    inputs = compiled("demo", tmp_path)[0]["root"]["inputDefinitions"]
    assert list(inputs) == ["parameters"]
    assert list(inputs["parameters"]) == ["seed"]


def test_deployment_stands_behind_the_promotion(tmp_path: Path):
    components = compiled("demo", tmp_path)[0]["components"]
    holders = [
        name for name, c in components.items() if "deploy" in c.get("dag", {}).get("tasks", {})
    ]
    assert len(holders) == 1
    branches = components["comp-condition-branches-2"]["dag"]["tasks"]
    condition = branches[holders[0].removeprefix("comp-")]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--promote-Output'] == true"


def test_a_step_knows_its_own_settings_only(tmp_path: Path):
    components = compiled("demo", tmp_path)[0]["components"]
    tasks = components["comp-exit-handler-1"]["dag"]["tasks"]
    settings = tasks["train-sft"]["inputs"]["parameters"]["settings"]["runtimeValue"]["constant"]
    assert settings == load_profile("demo").sft.model_dump_json()


def test_what_must_be_done_in_every_run_is_not_cached(tmp_path: Path):
    components = compiled("demo", tmp_path)[0]["components"]
    tasks = {
        name: task
        for component in components.values()
        for name, task in component.get("dag", {}).get("tasks", {}).items()
    }
    for name in ("deploy", "report", "report-2"):
        assert not tasks[name]["cachingOptions"].get("enableCache"), name
    assert tasks["train-hdpo"]["cachingOptions"]["enableCache"]


def test_on_a_cluster_steps_get_image_tracking_and_accelerators(tmp_path: Path):
    profile = load_profile("qwen3-vl-8b")
    assert profile.kubeflow is not None
    spec, platform = compiled("qwen3-vl-8b", tmp_path)
    executors = spec["deploymentSpec"]["executors"]
    assert {e["container"]["image"] for e in executors.values()} == {profile.kubeflow.image}
    environment = {e["name"]: e["value"] for e in executors["exec-train-hdpo"]["container"]["env"]}
    assert environment["MLFLOW_TRACKING_URI"] == profile.kubeflow.tracking_uri
    assert environment["MLFLOW_EXPERIMENT_NAME"] == "qwen3-vl-8b"
    accelerator = executors["exec-evaluate"]["container"]["resources"]["accelerator"]
    assert accelerator["resourceCount"] == str(profile.kubeflow.accelerators)
    assert "resources" not in executors["exec-promote"]["container"]
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    run = kubernetes["exec-train-hdpo"]["fieldPathAsEnv"]
    assert run == [{"name": "TOOLWISE_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}]


def test_training_steps_are_told_of_the_cluster_and_leave_its_gpus_to_their_trainjob(
    tmp_path: Path,
):
    executors = compiled("qwen3-vl-8b", tmp_path)[0]["deploymentSpec"]["executors"]
    for name in ("exec-train-sft", "exec-train-hdpo"):
        container = executors[name]["container"]
        assert "resources" not in container
        environment = {e["name"]: e["value"] for e in container["env"]}
        cluster = Cluster.model_validate_json(environment[CLUSTER_VARIABLE])
        assert cluster.exchange == "s3://toolwise/training"
        assert "AWS_SECRET_ACCESS_KEY" in cluster.secret_keys


def test_without_an_exchange_a_training_step_has_the_gpus_itself(tmp_path: Path):
    executors = compiled("qwen3-vl-2b", tmp_path)[0]["deploymentSpec"]["executors"]
    container = executors["exec-train-hdpo"]["container"]
    assert container["resources"]["accelerator"]["resourceCount"] == "1"
    assert CLUSTER_VARIABLE not in {e["name"] for e in container["env"]}


@pytest.mark.parametrize("name", ["demo", "smoke"])
def test_a_local_profile_names_no_cluster_resources(name: str, tmp_path: Path):
    documents = compiled(name, tmp_path)
    assert len(documents) == 1
    containers = [e["container"] for e in documents[0]["deploymentSpec"]["executors"].values()]
    assert not any("resources" in c or "env" in c for c in containers)
