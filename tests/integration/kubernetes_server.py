"""A local server that speaks as much of the Kubernetes API as a `TrainJob`'s follower asks for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/train/trainjobs"
PODS = "/api/v1/namespaces/train/pods"
SERVICES = "/api/v1/namespaces/train/services"
DEPLOYMENTS = "/apis/apps/v1/namespaces/train/deployments"


def condition(kind: str, reason: str = "JobsCompleted", message: str = "done") -> dict[str, Any]:
    return {
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ]
    }


RUNNING: dict[str, Any] = {}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@dataclass
class Cluster:
    """What the server holds, and how it behaves.

    Args:
        statuses: of the `TrainJob`, one a look; the last one stays.
        log: lines its first pod has written, each shown from the look of its position on.
        waiting: why the pod does not start; it runs where there is no reason.
        faults: requests answered 503 first.
        vanish_after: looks after which the `TrainJob` is gone.
        execute: do what the `TrainJob` says, each of its nodes a process of this machine.
        logs: what each of those nodes wrote; a pod for each, the first one's log in `log`.
    """

    statuses: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    waiting: dict[str, str] | None = None
    faults: int = 0
    vanish_after: int | None = None
    execute: bool = False
    logs: list[str] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    looks: int = 0
    looked: threading.Event = field(default_factory=threading.Event)

    def look(self, name: str) -> dict[str, Any] | None:
        if name not in self.jobs:
            return None
        self.looks += 1
        self.looked.set()
        if self.vanish_after is not None and self.looks > self.vanish_after:
            return None
        if self.statuses:
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            self.jobs[name]["status"] = status
        return self.jobs[name]

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        job = body | {"metadata": body["metadata"] | {"uid": f"uid-{name}"}, "status": {}}
        self.jobs[name] = job
        if self.execute:
            threading.Thread(target=self._execute, args=[job], daemon=True).start()
        return job

    def _execute(self, job: dict[str, Any]) -> None:
        """Be the job's nodes: a `torchrun` each, with the variables that Trainer sets."""
        trainer = job["spec"]["trainer"]
        assert trainer["command"][0] == "torchrun"
        plain = {e["name"]: e["value"] for e in trainer["env"] if "value" in e}
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        nodes = [
            subprocess.Popen(
                [*TORCHRUN, *trainer["command"][1:], *trainer["args"]],
                env=os.environ
                | plain
                | {"PET_NNODES": str(trainer["numNodes"])}
                | {"PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
                | {"PET_NODE_RANK": str(rank)}
                | {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
                | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
                | {name: os.environ[name] for name in ("TOOLWISE_WORK", "TOOLWISE_CACHE")},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(trainer["numNodes"])
        ]
        with ThreadPoolExecutor() as readers:
            outputs = [*readers.map(lambda node: node.communicate()[0], nodes)]
        self.log += outputs[0].splitlines()
        self.logs += outputs
        status = max(node.returncode for node in nodes)
        failed = condition("Failed", "JobFailed", f"exit status {status}")
        job["status"] = condition("Complete") if status == 0 else failed


class KubernetesServer(ThreadingHTTPServer):
    """Serves one `Cluster`."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.cluster = cluster

    def write_kubeconfig(self, path: Path) -> None:
        server = {"server": f"http://127.0.0.1:{self.server_port}"}
        context = {"cluster": "here", "user": "me", "namespace": "train"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": server}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": context}],
            "current-context": "here",
        }
        path.write_text(yaml.safe_dump(config))


class _Api(BaseHTTPRequestHandler):
    server: KubernetesServer

    def do_GET(self) -> None:
        if self._faulty():
            return
        cluster, path = self.server.cluster, urlsplit(self.path).path
        if path.startswith(f"{JOBS}/"):
            job = cluster.look(path.rpartition("/")[2])
            self._reply(200, job) if job else self._refuse(404, "NotFound")
        elif path == PODS:
            self._reply(200, {"kind": "PodList", "items": self._pods()})
        elif path.startswith(f"{PODS}/node-"):
            node = int(path.removeprefix(f"{PODS}/node-").removesuffix("/log"))
            first = cluster.log[: cluster.looks] if cluster.statuses else cluster.log
            lines = cluster.logs[node].splitlines() if node else first
            stamped = (f"2026-01-01T00:00:00.{i:09d}Z {line}" for i, line in enumerate(lines))
            self._send(200, "\n".join(stamped).encode(), "text/plain")
        else:
            self._refuse(404, path)

    def _pods(self) -> list[dict[str, Any]]:
        selector = parse_qs(urlsplit(self.path).query)["labelSelector"][0]
        assert "jobset.sigs.k8s.io/replicatedjob-name=node" in selector
        waiting = self.server.cluster.waiting
        status: dict[str, Any] = {"phase": "Pending" if waiting else "Running"}
        if waiting:
            status["conditions"] = [{"type": "PodScheduled", "status": "False", **waiting}]
        created, index = "2026-01-01T00:00:00Z", "batch.kubernetes.io/job-completion-index"
        nodes = 1 if f"{index}=0" in selector else max(1, len(self.server.cluster.logs))
        return [
            {
                "metadata": {
                    "name": f"node-{node}",
                    "creationTimestamp": created,
                    "labels": {index: str(node)},
                },
                "spec": {"containers": [{"name": "node"}]},
                "status": status,
            }
            for node in range(nodes)
        ]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._faulty():
            return
        cluster, path = self.server.cluster, urlsplit(self.path).path
        cluster.made.append((path, body))
        if path == JOBS and body["metadata"]["name"] in cluster.jobs:
            self._refuse(409, "AlreadyExists")
        elif path == JOBS and body["spec"]["trainer"]["image"] == "forbidden":
            self._refuse(403, "Forbidden")
        elif path == JOBS:
            self._reply(201, cluster.create(body))
        elif path in (SERVICES, DEPLOYMENTS):
            self._reply(201, body)
        else:
            self._refuse(404, path)

    def do_DELETE(self) -> None:
        cluster, name = self.server.cluster, urlsplit(self.path).path.rpartition("/")[2]
        if cluster.jobs.pop(name, None) is None:
            self._refuse(404, "NotFound")
            return
        cluster.deleted.append(name)
        self._reply(200, {"kind": "Status", "status": "Success"})

    def _faulty(self) -> bool:
        if self.server.cluster.faults == 0:
            return False
        self.server.cluster.faults -= 1
        self._refuse(503, "ServiceUnavailable")
        return True

    def _refuse(self, status: int, reason: str) -> None:
        self._reply(status, {"kind": "Status", "code": status, "reason": reason})

    def _reply(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
