"""What the pods of a run write, from the Kubernetes API; the Pipelines API has no logs to give."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import kubernetes
import urllib3

from pipelines.kubernetes_client import NoCluster, kubernetes_client

TAIL = 200
"""Lines of a log that are read at a look."""

_NODE = "workflows.argoproj.io/node-name"
_EXECUTOR = re.compile(r"\.([\w-]+)(?:\(\d+[^)]*\))?\.executor(?:\(\d+\))?$")
_TIMEOUT = (3.0, 10.0)


class LogLine(NamedTuple):
    """A line, and the task whose pod has written it."""

    task: str
    text: str


@dataclass
class PodLogs:
    """The logs of one run's pods; where the cluster cannot be asked, there are none.

    Args:
        namespace: of the pods.
        run_id: the run's.
        unavailable: why there are no logs, in words.
    """

    namespace: str
    run_id: str
    unavailable: str = ""
    _core: Any = field(default=None, repr=False)
    _newest: dict[str, str] = field(default_factory=dict, repr=False)
    _ended: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        try:
            self._core = kubernetes.client.CoreV1Api(kubernetes_client())
        except NoCluster as why:
            self.unavailable = str(why)

    def new(self) -> Iterator[LogLine]:
        """The lines that have come since the last look, pod by pod."""
        if self.unavailable:
            return
        try:
            pods: Any = self._core.list_namespaced_pod(
                self.namespace,
                label_selector=f"pipeline/runid={self.run_id}",
                _request_timeout=_TIMEOUT,
            )
        except kubernetes.client.ApiException as error:
            if error.status in (401, 403, 404):
                self.unavailable = (
                    f"namespace {self.namespace} cannot be looked into: {error.reason}"
                )
            return
        except urllib3.exceptions.HTTPError:
            return
        for pod in pods.items:
            executor = _EXECUTOR.search((pod.metadata.annotations or {}).get(_NODE, ""))
            name, phase = pod.metadata.name, pod.status.phase
            if executor is not None and phase != "Pending" and name not in self._ended:
                for text in self._lines(name, ended=phase in ("Succeeded", "Failed")):
                    yield LogLine(executor[1], text)

    def _lines(self, pod: str, *, ended: bool) -> Iterator[str]:
        try:
            text: Any = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container="main",
                timestamps=True,
                tail_lines=TAIL,
                _request_timeout=_TIMEOUT,
            )
        except (kubernetes.client.ApiException, urllib3.exceptions.HTTPError):
            return  # the pod has just gone, or its container is being made
        if ended:
            self._ended.add(pod)
        for stamped in text.splitlines():
            stamp, _, line = stamped.partition(" ")
            if stamp > self._newest.get(pod, "") and line.strip():
                self._newest[pod] = stamp
                yield line
