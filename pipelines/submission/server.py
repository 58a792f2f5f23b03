"""Where the Kubeflow Pipelines server is: at an address, in this cluster, or behind kubectl."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread

from toolwise.errors import BackendError, InputError

NAMESPACE = "kubeflow"
"""Where the server runs, unless `KFP_SERVER_NAMESPACE` says otherwise."""

FORWARD_SECONDS = 30.0
"""How long kubectl may take to reach the server."""

ADVICE = (
    "Give the address of a Kubeflow Pipelines server in KFP_HOST, for example\n"
    "    KFP_HOST=https://kubeflow.example.com/pipeline make submit-pipeline\n"
    "or have kubectl installed, with a current context in the server's cluster"
)


@dataclass(slots=True)
class Server:
    """The server, and how it was found.

    Args:
        url: its address.
        found: how, in words.
        forward: kubectl, where it passes requests on.
    """

    url: str
    found: str
    forward: subprocess.Popen[str] | None = field(default=None, repr=False)

    def revive(self) -> None:
        """Reach the server anew, where that is in our hands.

        Raises:
            BackendError: kubectl cannot reach it.
        """
        if self.forward is not None and self.forward.poll() is not None:
            self.url, self.forward = _forward()

    def close(self) -> None:
        """End what was started to reach the server."""
        if self.forward is not None:
            self.forward.terminate()
            self.forward.wait()


@contextmanager
def find_server(host: str | None) -> Iterator[Server]:
    """The server at `host`, or else in the cluster this pod is in, or else through kubectl.

    Raises:
        InputError: there is nowhere to look.
        BackendError: kubectl cannot reach it.
    """
    if host:
        server = Server(host.rstrip("/"), "KFP_HOST")
    elif os.environ.get("KUBERNETES_SERVICE_HOST"):
        address = f"http://ml-pipeline.{_namespace()}.svc.cluster.local:8888"
        server = Server(address, "in this cluster")
    elif shutil.which("kubectl"):
        url, process = _forward()
        server = Server(url, "through kubectl port-forward", process)
    else:
        raise InputError(f"there is no server to submit to.\n{ADVICE}")
    try:
        yield server
    finally:
        server.close()


def _namespace() -> str:
    return os.environ.get("KFP_SERVER_NAMESPACE") or NAMESPACE


def _forward() -> tuple[str, subprocess.Popen[str]]:
    """Have kubectl listen on a free port; the address there, and the process."""
    command = ["kubectl", "port-forward", "--namespace", _namespace(), "service/ml-pipeline-ui"]
    # In a session of its own: Ctrl-C is for us, and ends it when we have said our last word.
    process = subprocess.Popen(
        [*command, ":80"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    reader = Thread(target=lambda: said.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(FORWARD_SECONDS)
    line = said[0].strip() if said else "no answer"
    listening = re.search(r"Forwarding from (127\.0\.0\.1:\d+)", line)
    if listening is None:
        process.terminate()
        process.wait()
        raise BackendError(f"{' '.join(command)} :80 failed: {line}\n{ADVICE}")
    Thread(target=process.stdout.read, daemon=True).start()  # its pipe must not fill up
    return f"http://{listening[1]}", process
