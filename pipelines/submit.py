"""Submit the pipeline to a Kubeflow Pipelines server."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.plan import Plan
from pipelines.submission.api import PipelinesApi
from pipelines.submission.authentication import credentials
from pipelines.submission.following import Follower, in_sight
from pipelines.submission.places import places
from pipelines.submission.pod_logs import PodLogs
from pipelines.submission.server import find_server, server_namespace
from toolwise.errors import InputError
from toolwise.profile import KubeflowSettings, Profile


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run that has been started: its name and id."""

    name: str
    run_id: str


@contextmanager
def open_server(host: str | None) -> Iterator[PipelinesApi]:
    """The Pipelines API of the server, which is there and knows us.

    Args:
        host: its address; without one it is looked for, see `find_server`.

    Raises:
        InputError: there is nowhere to look, or credentials are wrong.
        BackendError: the server cannot be reached, is another one, or wants other credentials.
    """
    with find_server(host) as server:
        api = PipelinesApi(server, credentials(server.url))
        api.multi_user()
        yield api


def kubeflow_of(profile: Profile) -> KubeflowSettings:
    """The section `kubeflow`; raises `InputError` where the profile runs locally only."""
    if profile.kubeflow is None:
        raise InputError(
            f"profile {profile.name!r} has no section `kubeflow`, so it runs on this machine only, "
            "by the command `run`"
        )
    return profile.kubeflow


def run_namespace(profile: Profile, multi_user: bool) -> str:
    """Where the pods of a run are.

    Args:
        profile: says where, for a server with several users; `KFP_NAMESPACE` overrides it.
        multi_user: whether the server has several.
    """
    chosen = os.environ.get("KFP_NAMESPACE")
    return chosen or (kubeflow_of(profile).namespace if multi_user else server_namespace())


def submit_pipeline(profile: Profile, seed: int, api: PipelinesApi, plan: Plan) -> Submitted:
    """Compile the pipeline, upload it as a version if it is new, and start a run.

    Args:
        profile: has to say how to run on Kubeflow.
        seed: the run's seed.
        api: the server.
        plan: the pipeline.

    Raises:
        InputError: the profile runs locally only.
        BackendError: the server cannot be reached or refuses.
    """
    kubeflow = kubeflow_of(profile)
    # A server for one user has no namespaces to choose from.
    namespace = run_namespace(profile, True) if api.multi_user() else None
    name = plan.name
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{name}.yaml"
        plan.write(package)
        version = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
        pipeline = api.pipeline(name, namespace) or api.upload(package, name, namespace)
        version_id = api.version(pipeline, version) or api.upload_version(
            package, version, pipeline
        )
    run_name = f"{name} {version} seed {seed}"
    run = {
        "display_name": run_name,
        "experiment_id": api.experiment(profile.name, namespace),
        "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version_id},
        "runtime_config": {"parameters": {"seed": seed}},
    }
    if kubeflow.service_account:
        run["service_account"] = kubeflow.service_account
    run_id = api.start(run)
    return Submitted(run_name, run_id)


def follow_run(
    profile: Profile, plan: Plan, run_id: str, api: PipelinesApi, console: Console, again: str
) -> None:
    """Follow a run to its end, and say where its results are, however it ended.

    Args:
        profile: the run's.
        plan: its pipeline.
        run_id: its id.
        api: the server.
        console: where to show it.
        again: the command that follows it again.

    Raises:
        RunFailed: the run failed, or somebody stopped it.
        LostSight: the server stayed away or turned us away; the run goes on.
        InputError: there is no such run.
    """
    succeeded = False
    try:
        with in_sight(again):
            logs = PodLogs(run_namespace(profile, api.multi_user()), run_id)
        Follower(api, run_id, again, plan, console, logs).follow()
        succeeded = True
    finally:
        for name, place in places(profile, run_id, succeeded=succeeded):
            console.print(f"{name + ':':10}{place}", soft_wrap=True, markup=False)
