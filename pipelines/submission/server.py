"""Where the Kubeflow Pipelines server is: at an address, in this cluster, or behind kubectl."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from threading import Thread, current_thread, main_thread
from typing import Any
from urllib.parse import urlsplit

from toolwise.errors import BackendError, InputError

NAMESPACE = "kubeflow"
"""Where the server runs, unless `KFP_SERVER_NAMESPACE` says otherwise."""

FORWARD_SECONDS = 30.0
"""How long kubectl may take to reach the server, and to end."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
        has_ui: whether its pages are at `url` too.
    """

    url: str
    found: str
    forward: subprocess.Popen[str] | None = field(default=None, repr=False)
    has_ui: bool = True

    def page(self, run_id: str, *, lasting: bool = False) -> str:
        """The run's page in the UI: its address, or the command that opens it first.

        Args:
            run_id: the run's.
            lasting: it is to be there when this process has ended.
        """
        path = f"/#/runs/details/{run_id}"
        if self.has_ui and not (lasting and self.forward):
            return f"{self.url}{path}"
        command = " ".join([*_forward_command(), "8080:80"])
        return f"http://127.0.0.1:8080{path}   (first: {command})"

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
            _end(self.forward)


@contextmanager
def find_server(host: str | None) -> Iterator[Server]:
    """The server at `host`, or else in the cluster this pod is in, or else through kubectl.

    Raises:
        InputError: there is nowhere to look.
        BackendError: kubectl cannot reach it.
    """
    if host:
        yield Server(host.rstrip("/"), "KFP_HOST")
    elif os.environ.get("KUBERNETES_SERVICE_HOST"):
        address = f"http://ml-pipeline.{server_namespace()}.svc.cluster.local:8888"
        yield Server(address, "in this cluster", has_ui=False)
    elif shutil.which("kubectl"):
        with _ended_by_signals():
            url, process = _forward()
            server = Server(url, "through kubectl port-forward", process)
            try:
                yield server
            finally:
                server.close()
    else:
        raise InputError(f"there is no server to submit to.\n{ADVICE}")


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_namespace() -> str:
    """Where the server is, and where one for a single user runs its pods."""
    return os.environ.get("KFP_SERVER_NAMESPACE") or NAMESPACE


def _forward_command() -> list[str]:
    return ["kubectl", "port-forward", "--namespace", server_namespace(), "service/ml-pipeline-ui"]


def _forward() -> tuple[str, subprocess.Popen[str]]:
    """Have kubectl listen on a free port; the address there, and the process."""
    command = [*_forward_command(), ":80"]
    process = None
    try:
        with _uninterrupted():
            # In a session of its own: Ctrl-C is for us, and ends it when we have had the last word.
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        return f"http://{_listening(process, ' '.join(command))}", process
    except BaseException:
        if process is not None:
            _end(process)
        raise


def _listening(process: subprocess.Popen[str], command: str) -> str:
    """Host and port where kubectl listens, once it says so; warnings may come before.

    Raises:
        BackendError: it ends, or does not say so in time.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        # Until its end: the pipe must not fill up.
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.strip())
        lines.put(None)

    Thread(target=read, daemon=True).start()
    end = time.monotonic() + FORWARD_SECONDS
    last = "no answer"
    while True:
        try:
            line = lines.get(timeout=max(end - time.monotonic(), 0))
        except queue.Empty:
            line = None
        if line is None:
            raise BackendError(f"{command} failed: {last}\n{ADVICE}")
        if listening := re.search(r"Forwarding from (127\.0\.0\.1:\d+)", line):
            return listening[1]
        last = line or last


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(FORWARD_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise `SystemExit`, so that what was started is ended too."""
    # One that is ignored, by nohup for example, stays ignored.
    deadly = [n for n in _ENDING[1:] if signal.getsignal(n) is signal.SIG_DFL]
    with _handled(deadly, lambda number, _: sys.exit(128 + number)):
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals back for as long, so that nothing is started that nobody knows of."""
    caught: list[int] = []
    with _handled(
        [n for n in _ENDING if signal.getsignal(n) not in (signal.SIG_IGN, None)],
        lambda number, _: caught.append(number),
    ):
        yield
    for number in caught:
        signal.raise_signal(number)


@contextmanager
def _handled(numbers: list[signal.Signals], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Have these signals handled so; only the main thread can."""
    if current_thread() is not main_thread():
        numbers = []
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
