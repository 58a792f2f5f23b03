"""Where the results of a run are, for a person to open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipelines.submission.server import is_loopback
from toolwise.errors import ToolwiseError
from toolwise.profile import Profile

SECONDS = 5.0
"""How long MLflow may take to say where the run is."""

_API = "/api/2.0/mlflow"
_TAG = "toolwise.pipeline_run"  # as toolwise.tracking has it, which would load MLflow


def places(profile: Profile, run_id: str, *, succeeded: bool) -> Iterator[tuple[str, str]]:
    """What there is to open, by name: MLflow, and the endpoint.

    Args:
        profile: the run's; it has a section `kubeflow`.
        run_id: the run's.
        succeeded: it has ended well, so that there may be a new endpoint to ask the cluster for.
    """
    kubeflow = profile.kubeflow
    assert kubeflow is not None
    yield "MLflow", mlflow_page(kubeflow.tracking_uri, profile.name, run_id)
    namespace = kubeflow.serving.namespace
    yield "Endpoint", _endpoint(profile.serve.name, namespace, ask=succeeded)


def mlflow_page(uri: str, experiment: str, run: str) -> str:
    """The page of a pipeline run in MLflow, as far as it is known from here.

    Args:
        uri: MLflow, as pods reach it.
        experiment: its name.
        run: name of the pipeline run.
    """
    uri = uri.rstrip("/")
    try:
        with httpx.Client(timeout=SECONDS, trust_env=not is_loopback(uri)) as client:
            return f"{uri}/#/{_path(client, uri, experiment, run)}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        pass  # most often an address within the cluster
    what = f"experiment {experiment}, run {run}"
    split = urlsplit(uri)
    name, _, rest = (split.hostname or "").partition(".")
    namespace, _, domain = rest.partition(".")
    if domain not in ("svc", "svc.cluster.local"):
        return f"{uri}   {what}"
    port = split.port or (443 if split.scheme == "https" else 80)
    command = f"kubectl port-forward --namespace {namespace} service/{name} 5000:{port}"
    return f"{split.scheme}://127.0.0.1:5000   {what}   (first: {command})"


def _path(client: httpx.Client, uri: str, experiment: str, run: str) -> str:
    """Path of the run's page, or of the experiment's where no step has logged yet."""
    found = client.get(
        f"{uri}{_API}/experiments/get-by-name", params={"experiment_name": experiment}
    )
    number: str = found.raise_for_status().json()["experiment"]["experiment_id"]
    query = {"experiment_ids": [number], "filter": f"tags.`{_TAG}` = '{run}'"}
    answer = client.post(f"{uri}{_API}/runs/search", json=query)
    runs: list[Any] = answer.raise_for_status().json().get("runs", [])
    path = f"experiments/{number}"
    return f"{path}/runs/{runs[0]['info']['run_id']}" if runs else path


def _endpoint(name: str, namespace: str, *, ask: bool) -> str:
    look = f"kubectl get inferenceservice {name} --namespace {namespace}"
    if not ask:
        return look
    try:
        from toolwise.serving.kubernetes_api import InferenceServices

        found = InferenceServices(namespace).get(name)
    except ToolwiseError:
        return look
    url = (found or {}).get("status", {}).get("url")
    return f"{url}/openai/v1" if url else f"none is there ({look})"
