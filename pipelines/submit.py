"""Submit the pipeline to a Kubeflow Pipelines server."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import kfp
import kfp_server_api

from pipelines.metis import compile_pipeline
from toolwise.errors import BackendError, InputError
from toolwise.profile import Profile

ADVICE = (
    "Give the address of a Kubeflow Pipelines server in KFP_HOST, for example\n"
    "    kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8888:80\n"
    "    KFP_HOST=http://127.0.0.1:8888 make submit-pipeline"
)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run that has been started: its name, id, and address in the Kubeflow UI."""

    name: str
    run_id: str
    link: str


def submit_pipeline(profile: Profile, seed: int, host: str | None) -> Submitted:
    """Compile the pipeline, upload it as a version if it is new, and start a run.

    `KFP_NAMESPACE` and `KFP_TOKEN` serve multi-user servers that ask for them.

    Args:
        profile: has to say how to run on Kubeflow.
        seed: the run's seed.
        host: address of the server.

    Raises:
        InputError: no address was given, or the profile runs locally only.
        BackendError: the server cannot be reached or refuses.
    """
    if profile.kubeflow is None:
        raise InputError(
            f"profile {profile.name!r} has no section `kubeflow`, so it runs on this machine only: "
            f"make demo PROFILE={profile.name}"
        )
    if not host:
        raise InputError(f"there is no server to submit to.\n{ADVICE}")
    _check_reachable(host)
    try:
        # The client prints links of its own, in words of its own.
        with contextlib.redirect_stdout(io.StringIO()):
            return _submit(profile, seed, host.rstrip("/"))
    except kfp_server_api.ApiException as error:
        raise BackendError(
            f"the Kubeflow Pipelines server at {host} refused: {error.status} {error.reason}: "
            f"{_said(error)}"
        ) from None


def _submit(profile: Profile, seed: int, host: str) -> Submitted:
    name = f"metis-{profile.name}"
    namespace = os.environ.get("KFP_NAMESPACE", "kubeflow")
    client = kfp.Client(host, namespace=namespace, existing_token=os.environ.get("KFP_TOKEN"))
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{name}.yaml"
        compile_pipeline(profile, package)
        version = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
        pipeline_id = client.get_pipeline_id(name)
        if pipeline_id is None:
            pipeline_id = str(client.upload_pipeline(str(package), name).pipeline_id)
        version_id = _find_version(client, pipeline_id, version)
        if version_id is None:
            uploaded = client.upload_pipeline_version(str(package), version, pipeline_id)
            version_id = uploaded.pipeline_version_id
    experiment = client.create_experiment(profile.name, namespace=namespace)
    run_name = f"{name} {version} seed {seed}"
    started = client.run_pipeline(
        str(experiment.experiment_id),
        run_name,
        params={"seed": seed},
        pipeline_id=pipeline_id,
        version_id=version_id,
    )
    return Submitted(run_name, str(started.run_id), f"{host}/#/runs/details/{started.run_id}")


def _find_version(client: kfp.Client, pipeline_id: str, name: str) -> str | None:
    page = ""
    while True:
        found = client.list_pipeline_versions(pipeline_id, page_token=page, page_size=100)
        for version in found.pipeline_versions or []:
            if version.display_name == name:
                return version.pipeline_version_id
        page = found.next_page_token
        if not page:
            return None


def _check_reachable(host: str) -> None:
    """Fail in seconds; the client by itself would try for half a minute, then trace back."""
    url = f"{host.rstrip('/')}/apis/v2beta1/healthz"
    try:
        token = os.environ.get("KFP_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        reply = httpx.get(url, headers=headers, timeout=10, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BackendError(
            f"no Kubeflow Pipelines server answers at {host} ({error}).\n{ADVICE}"
        ) from None
    if reply.status_code in (401, 403):
        raise BackendError(
            f"the Kubeflow Pipelines server at {host} wants credentials ({reply.status_code}); "
            "give a token in KFP_TOKEN"
        )
    if reply.status_code != 200:
        raise BackendError(
            f"{url} answers {reply.status_code}, so {host} is no Kubeflow Pipelines server.\n"
            f"{ADVICE}"
        )


def _said(error: kfp_server_api.ApiException) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
    return (body or "nothing more").strip()[:500]
