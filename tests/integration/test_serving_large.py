"""Requests that are large in one way or another are refused early, and hold nobody else up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from served import ServedProcess
from streaming_server import StreamingServer

from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA

HEAD = b'{"model": "toolwise", "max_tokens": 2, "messages": ['
MESSAGE = b'{"role": "user", "content": "a"}'
PART = b'{"type": "text", "text": ""}'
MIB = 2**20


@pytest.fixture(scope="module", params=["upstream", "in process"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "upstream":
        with (
            StreamingServer() as upstream,
            ServedProcess(folder / "log", "--upstream", upstream.url) as running,
        ):
            yield running
        return
    processor = build_processor([PYTHON_SCHEMA])
    processor.save_pretrained(folder)
    build_model(processor.tokenizer).save_pretrained(folder)
    with ServedProcess(folder / "log", "--model-dir", str(folder)) as running:
        yield running


def repeated(item: bytes, size: int) -> bytes:
    return b",".join([item] * (size // (len(item) + 1)))


def user(content: bytes) -> bytes:
    return b'{"role": "user", "content": ' + content + b"}"


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        pytest.param(repeated(MESSAGE, MIB), 400, "messages", id="many messages"),
        pytest.param(repeated(MESSAGE, 60 * MIB), 413, "messages", id="a body of messages"),
        pytest.param(
            user(b"[" + repeated(PART, MIB) + b"]"), 400, "messages[0].content", id="parts"
        ),
        pytest.param(repeated(b"[]", 60 * MIB), 413, "messages", id="a body of lists"),
        pytest.param(user(b'"' + b"say yes " * 2**16 + b'"'), 400, "messages", id="long text"),
        pytest.param(user(b'"' + b"say yes " * MIB + b'"'), 413, "messages", id="very long text"),
        pytest.param(
            user(b'"data:' + b"say yes " * MIB + b'"'), 400, "messages", id="text like an image"
        ),
    ],
)
def test_a_request_too_large_is_refused_while_others_are_answered(
    server: ServedProcess, content: bytes, status: int, param: str
) -> None:
    with Neighbour(server) as neighbour:
        reply = post(server, HEAD + content + b"]}")
        neighbour.ask_once_more()
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["param"] == param
    assert neighbour.statuses == {200}
    assert neighbour.longest < 3
    assert memory(server) < 2048 * MIB


def test_a_text_as_long_as_is_allowed_holds_nobody_up(server: ServedProcess) -> None:
    with Neighbour(server) as neighbour:
        for _ in range(4):
            post(server, HEAD + user(b'"' + b"say yes " * 2**15 + b'"') + b"]}")
        neighbour.ask_once_more()
    assert neighbour.statuses == {200}
    assert neighbour.longest < 3


class Neighbour:
    """Another client, who asks one small question after the other meanwhile."""

    def __init__(self, server: ServedProcess) -> None:
        self._server = server
        self._over = threading.Event()
        self._answered = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._ask)
        self.statuses: set[int] = set()
        self.longest = 0.0

    def __enter__(self) -> Neighbour:
        self._thread.start()
        self.ask_once_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def ask_once_more(self) -> None:
        """Wait until a question that was asked from now on is answered."""
        for _ in range(2):
            assert self._answered.acquire(timeout=60)

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set():
                started = time.monotonic()
                reply = post(self._server, HEAD + user(b'"say yes"') + b"]}", client)
                self.longest = max(self.longest, time.monotonic() - started)
                self.statuses.add(reply.status_code)
                self._answered.release()


def post(
    server: ServedProcess, content: bytes, client: httpx.Client | None = None
) -> httpx.Response:
    url = f"{server.origin}/v1/chat/completions"
    headers = {"content-type": "application/json"}
    return (client or httpx).post(url, content=content, headers=headers, timeout=60)


def memory(server: ServedProcess) -> int:
    return psutil.Process(server.process.pid).memory_info().rss
