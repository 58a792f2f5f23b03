"""The InferenceService is one KServe accepts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifests.schemas import schema_faults
from toolwise.errors import InputError
from toolwise.profile import Profile, load_profile
from toolwise.serving.inference_service import ClusterSettings, inference_service
from toolwise.serving.server import _parser, _settings, _source
from toolwise.serving.settings import SENDING_SECONDS, ServingSettings
from toolwise.tools.sandbox import Isolation

SERVING = ServingSettings(name="metis", isolation=Isolation.GVISOR, max_tokens=4096)
CLUSTER = ClusterSettings(namespace="agents", image="toolwise/agent:1", gpus=2)


@pytest.fixture
def manifest() -> dict[str, Any]:
    return inference_service(SERVING, CLUSTER, "s3://models/metis/3", "s3://models/corpus.jsonl")


def test_kserves_schema_and_models_know_every_field_and_would_refuse_a_typo(
    manifest: dict[str, Any],
) -> None:
    assert [*schema_faults(manifest)] == []
    manifest["spec"]["predictor"]["model"]["storageURI"] = "x"
    assert [*schema_faults(manifest)]


def test_the_predictor_is_vllm_on_the_registered_checkpoint(manifest: dict[str, Any]) -> None:
    model = manifest["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://models/metis/3"
    assert model["modelFormat"] == {"name": "huggingface"}
    assert {"--model_name=metis", "--tensor-parallel-size=2", "--enable-auto-tool-choice"} <= set(
        model["args"]
    )
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_the_agents_flags_are_the_servers_with_those_kserve_adds(manifest: dict[str, Any]) -> None:
    transformer = manifest["spec"]["transformer"]
    [container] = transformer["containers"]
    added = ["--model_name", "metis", "--predictor_host", "metis-predictor.agents"]
    options = _parser().parse_args([*container["args"], *added, "--http_port", "8080"])
    assert _settings(options) == SERVING.model_copy(update={"host": "0.0.0.0"})
    assert _source(options) == ("http://metis-predictor.agents/openai/v1", "metis")
    assert options.corpus == "s3://models/corpus.jsonl"
    assert transformer["terminationGracePeriodSeconds"] > SERVING.request_seconds


@pytest.mark.parametrize(
    ("isolation", "given"), [(Isolation.GVISOR, "runsc"), (Isolation.BUBBLEWRAP, None)]
)
def test_the_agent_has_gvisors_runtime_class_by_the_clusters_name(
    isolation: Isolation, given: str | None
) -> None:
    assert CLUSTER.runtime_class == "gvisor"
    serving = SERVING.model_copy(update={"isolation": isolation})
    cluster = CLUSTER.model_copy(update={"runtime_class": "runsc"})
    transformer = inference_service(serving, cluster, "s3://m/1", None)["spec"]["transformer"]
    assert transformer.get("runtimeClassName") == given


def test_the_gateway_waits_until_the_agent_has_said_that_time_is_up(
    manifest: dict[str, Any],
) -> None:
    # KServe gives the gateway's route the transformer's timeout.
    timeout = manifest["spec"]["transformer"]["timeout"]
    assert timeout == SERVING.request_seconds + SENDING_SECONDS


@pytest.mark.parametrize("uri", ["models:/metis/3", "/tmp/model", "runs:/1/model"])
def test_a_model_kserve_cannot_fetch_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="publish the checkpoint"):
        inference_service(SERVING, CLUSTER, uri, None)


@pytest.mark.parametrize(("share", "told"), [(0.05, ["http://mlflow:5000"]), (0.0, [])])
def test_the_agent_is_told_of_the_profiles_mlflow_where_it_traces(
    share: float, told: list[str]
) -> None:
    content = load_profile("qwen3-vl-8b").model_dump(mode="json")
    content["serve"]["trace_share"] = share
    content["kubeflow"]["tracking_uri"] = "http://mlflow:5000"
    deployed = Profile.model_validate(content).deployment
    assert deployed.cluster is not None
    made = inference_service(deployed.serve, deployed.cluster, "s3://models/metis/3", None)
    [container] = made["spec"]["transformer"]["containers"]
    assert [v["value"] for v in container["env"] if v["name"] == "MLFLOW_TRACKING_URI"] == told
