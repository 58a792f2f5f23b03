"""The InferenceService is one KServe accepts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import kserve
import kserve.models
import pytest
from kserve import V1beta1InferenceService
from kubernetes import client as k8s

from toolwise.errors import InputError
from toolwise.serving.inference_service import ClusterSettings, inference_service
from toolwise.serving.server import _parser, _settings, _source
from toolwise.serving.settings import ServingSettings
from toolwise.tools.sandbox import Isolation

SCHEMA = "inferenceservice_serving.kserve.io_v1beta1.json"
PUBLISHED = Path(__file__).parents[3] / "shared" / "schemas" / SCHEMA

SERVING = ServingSettings(name="metis", isolation=Isolation.GVISOR, max_tokens=4096)
CLUSTER = ClusterSettings(namespace="agents", image="toolwise/agent:1", gpus=2)


class Response(NamedTuple):
    """What the client reads a document from."""

    data: str


@pytest.fixture
def manifest() -> dict[str, Any]:
    return inference_service(SERVING, CLUSTER, "s3://models/metis/3", "s3://models/corpus.jsonl")


def strict(schema: Any) -> Any:
    """The schema as Kubernetes applies it: unknown fields refused, int-or-string understood."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if made.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(schema.get("properties"), dict) and not made.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published schema is not beside this tree")
def test_the_published_schema_accepts_it_and_would_refuse_a_typo(manifest: dict[str, Any]) -> None:
    document = json.loads(PUBLISHED.read_text())
    validator = jsonschema.Draft202012Validator(
        strict(document.get("openAPIV3Schema", document)),
    )
    assert [error.message for error in validator.iter_errors(manifest)] == []
    typo = copy.deepcopy(manifest)
    typo["spec"]["predictor"]["model"]["storageURI"] = "x"
    assert not validator.is_valid(typo)


def test_kserves_own_models_read_every_field_back(
    manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in dir(kserve.models):  # where the client looks types up
        if name.startswith("V1beta1"):
            monkeypatch.setattr(k8s.models, name, getattr(kserve.models, name), raising=False)

    def read_back(document: dict[str, Any]) -> Any:
        client = k8s.ApiClient()
        typed = client.deserialize(Response(json.dumps(document)), V1beta1InferenceService)
        return client.sanitize_for_serialization(typed)

    assert read_back(manifest) == manifest
    typo = copy.deepcopy(manifest)
    typo["spec"]["predictor"]["model"]["storageURI"] = "x"
    assert read_back(typo) != typo


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
    assert transformer["runtimeClassName"] == "gvisor"
    assert transformer["terminationGracePeriodSeconds"] > SERVING.request_seconds


@pytest.mark.parametrize("uri", ["models:/metis/3", "/tmp/model", "runs:/1/model"])
def test_a_model_kserve_cannot_fetch_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="publish the checkpoint"):
        inference_service(SERVING, CLUSTER, uri, None)
