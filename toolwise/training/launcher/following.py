"""Start a `TrainJob`, follow it to its end, or cancel it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import kubernetes
import urllib3
from kubeflow_trainer_api import models
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException

from toolwise.errors import BackendError
from toolwise.retry import call_endpoint
from toolwise.training.launcher.trainjob import GROUP, PLURAL, VERSION

POLL = 5.0
"""Seconds between two looks."""
PATIENCE = 7200.0
"""Seconds without a sign of life (pods to be had, an image to be pulled, a step to end)."""
TAIL = 1000
"""Lines of the log read at a look."""
SHOWN = 20
"""Last lines of the log that an error quotes."""
ERROR = "Error: "
"""How a training process begins the line that says why it ends; torchrun's own account follows."""
_INDEX = "batch.kubernetes.io/job-completion-index"
"""Label of a pod with the number of its node."""
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

T = TypeVar("T")


class TrainJobLost(BackendError):
    """A `TrainJob` that will not go on: it failed, or gives no sign of life."""


@dataclass
class TrainJobs:
    """The `TrainJob`s of the namespace this pod is in, or of the current context.

    Raises:
        BackendError: there is no cluster to talk to.
    """

    poll: float = field(default_factory=lambda: POLL)
    patience: float = PATIENCE
    namespace: str = field(init=False)

    def __post_init__(self) -> None:
        self._config: Any = kubernetes.client.Configuration()
        self._config.retries = False  # ours are bounded, and name the endpoint
        try:
            if _NAMESPACE.exists():
                kubernetes.config.load_incluster_config(self._config)
                self.namespace = _NAMESPACE.read_text().strip()
            else:
                kubernetes.config.load_kube_config(client_configuration=self._config)
                context = kubernetes.config.list_kube_config_contexts()[1]["context"]
                self.namespace = context.get("namespace", "default")
        except ConfigException as error:
            raise BackendError(f"there is no Kubernetes cluster to train on: {error}") from None
        api = kubernetes.client.ApiClient(self._config)
        self._api = api
        self._custom = kubernetes.client.CustomObjectsApi(api)
        self._core = kubernetes.client.CoreV1Api(api)
        self._apps = kubernetes.client.AppsV1Api(api)

    def start(self, job: models.TrainerV1alpha1TrainJob) -> dict[str, Any]:
        """Create the `TrainJob`, or find it: a step that was cut off follows the one it started.

        One that failed earlier is replaced; it goes on from its last checkpoint.

        Returns:
            The `TrainJob` as the cluster has it.

        Raises:
            BackendError: the cluster refuses it, or cannot be reached.
        """
        name = job.metadata.name if job.metadata else None
        assert name
        found = self._get(name)
        if found is not None and _condition(found, "Failed"):
            self.cancel(name)
            found = self._wait_until_gone(name)
        if found is not None:
            return found
        body = job.to_dict()
        try:
            return self._ask(
                lambda: self._custom.create_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, body
                )
            )
        except BackendError as error:
            # A request that seemed to fail may have come through.
            if _refused(error, 409):
                found = self._get(name)
                if found is not None:
                    return found
            raise

    def put(self, deployment: Any, service: Any) -> None:
        """Create a Deployment and its Service where they are not there yet."""
        for create, what in (
            (self._apps.create_namespaced_deployment, deployment),
            (self._core.create_namespaced_service, service),
        ):
            try:
                self._ask(lambda create=create, what=what: create(self.namespace, what))
            except BackendError as error:
                if not _refused(error, 409):
                    raise

    def follow(self, name: str, heard: Callable[[str], None]) -> None:
        """Wait for the end of a `TrainJob`.

        Args:
            name: the `TrainJob`'s.
            heard: gets every line its first node writes.

        Raises:
            TrainJobLost: it failed (with its reason, and the errors of its nodes or else the first
                one's last lines), or there was no sign of life of it for `patience` seconds.
            BackendError: somebody deleted it, or the cluster cannot be reached.
        """
        log = _Log()
        seen, since = "", time.monotonic()
        while True:
            job = self._get(name)
            if job is None:
                raise BackendError(
                    f"TrainJob {name} is gone: somebody deleted it; run the step again, it goes on "
                    "from the last checkpoint"
                )
            for line in self._lines(name, log):
                heard(line)
                since = time.monotonic()
            if _condition(job, "Complete"):
                return
            if failed := _condition(job, "Failed"):
                why = _quoted(self._errors(name)) or log.end
                raise TrainJobLost(
                    f"TrainJob {name} failed: {failed['reason']}: {failed['message']}{why}"
                )
            state = str(job.get("status", {}).get("jobsStatus"))
            if state != seen:
                seen, since = state, time.monotonic()
            if time.monotonic() - since > self.patience:
                raise TrainJobLost(
                    f"TrainJob {name} has given no sign of life for {self.patience:g} seconds: "
                    f"{self._why_not(name)}{log.end}"
                )
            time.sleep(self.poll)

    def cancel(self, name: str) -> None:
        """Delete a `TrainJob` with its pods; nothing happens where there is none."""
        try:
            self._ask(
                lambda: self._custom.delete_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name
                )
            )
        except BackendError as error:
            if not _refused(error, 404):
                raise

    def _get(self, name: str) -> dict[str, Any] | None:
        try:
            found: Any = self._ask(
                lambda: self._custom.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name
                )
            )
        except BackendError as error:
            if _refused(error, 404):
                return None
            raise
        return found

    def _wait_until_gone(self, name: str) -> None:
        """Kubernetes deletes in its own time: pods go first."""
        deadline = time.monotonic() + self.patience
        while self._get(name) is not None:
            if time.monotonic() > deadline:
                raise BackendError(f"TrainJob {name}, which had failed, cannot be deleted")
            time.sleep(self.poll)

    def _pods(self, name: str, which: str = "") -> list[Any]:
        """The pods of all nodes, or of those a further selector tells, oldest first."""
        selector = (
            f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name=node"
            + which
        )
        pods: Any = self._ask(
            lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector)
        )
        return sorted(pods.items, key=lambda pod: pod.metadata.creation_timestamp)

    def _pod(self, name: str) -> Any | None:
        """The newest pod of the first node."""
        pods = self._pods(name, f",{_INDEX}=0")
        return pods[-1] if pods else None

    def _lines(self, name: str, log: _Log) -> Iterator[str]:
        pod = self._pod(name)
        if pod is not None and pod.status.phase != "Pending":
            yield from log.new(self._text(pod))

    def _errors(self, name: str) -> list[str]:
        """The error that a process named, of each node where one did; a node's newest pod tells."""
        newest = {(pod.metadata.labels or {}).get(_INDEX): pod for pod in self._pods(name)}
        found: dict[str, None] = {}
        for pod in newest.values():
            log = _Log()
            for _ in log.new(self._text(pod)):
                pass
            if log.error:
                found[log.error] = None
        return list(found)

    def _text(self, pod: Any) -> str:
        """The end of a pod's log, every line with its time."""
        try:
            text: Any = self._ask(
                lambda: self._core.read_namespaced_pod_log(
                    pod.metadata.name, self.namespace, timestamps=True, tail_lines=TAIL
                )
            )
        except BackendError as error:
            # The container is being made, or the pod has just gone.
            if _refused(error, 400, 404):
                return ""
            raise
        return text

    def _why_not(self, name: str) -> str:
        pod = self._pod(name)
        if pod is None:
            return "it has no pod (is the ClusterTrainingRuntime there, and is there quota?)"
        for container in pod.status.container_statuses or ():
            waiting = container.state and container.state.waiting
            if waiting:
                return f"its container waits: {waiting.reason}: {waiting.message}"
        for condition in pod.status.conditions or ():
            if condition.status == "False" and condition.message:
                return f"its pod waits: {condition.reason}: {condition.message}"
        return f"its pod is {pod.status.phase}"

    def _ask(self, request: Callable[[], T]) -> T:
        where = f"Kubernetes at {self._config.host}"
        try:
            return call_endpoint(request, where, _transient)
        except ApiException as error:
            raise BackendError(
                f"{where} refused: {error.status} {error.reason}: {str(error.body)[:500]}"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise BackendError(f"{where}: {error}") from error


class _Log:
    """What was read of a log so far; lines come with the time they were written."""

    def __init__(self) -> None:
        self._newest = ""
        self._last: list[str] = []
        self.error = ""

    def new(self, text: str) -> Iterator[str]:
        for stamped in text.splitlines():
            stamp, _, line = stamped.partition(" ")
            if stamp > self._newest:
                self._newest = stamp
                self._last = [*self._last[1 - SHOWN :], line]
                if line.startswith(ERROR):
                    self.error = line
                yield line

    @property
    def end(self) -> str:
        """The error a process named, or else the last lines."""
        return _quoted([self.error] if self.error else self._last)


def _quoted(lines: Iterable[str]) -> str:
    return "".join(f"\n    {line}" for line in lines if line)


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    conditions = job.get("status", {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


def _refused(error: BackendError, *statuses: int) -> bool:
    """Whether the cluster answered with one of these."""
    cause: Any = error.__cause__
    return isinstance(cause, ApiException) and cause.status in statuses


def _transient(error: Exception) -> bool:
    if isinstance(error, ApiException):
        status: Any = error.status
        return status is None or status >= 500 or status in (0, 429)
    return isinstance(error, urllib3.exceptions.HTTPError)
