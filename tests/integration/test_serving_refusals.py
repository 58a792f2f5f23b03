"""Requests that are wrong or too large are refused by either kind of server, and hold nobody up."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

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


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "toolwise", "messages": [{"role": "user", "content": text}], **fields}


def malformed(count: int) -> list[bytes]:
    """Requests that are wrong, no two alike."""
    chosen = random.Random(5)
    whole = json.dumps(body("say 1", temperature=0.5, max_tokens=9, stop=["x"]))
    wrong = [
        b"\xff\xfe" + whole.encode(),
        b"[" * 100_000,
        b'{"a":' * 50_000,
        whole.replace("0.5", "1e999").encode(),
        whole.replace("0.5", "NaN").encode(),
        whole.replace("say 1", "\\ud800").encode(),
        whole.replace('"toolwise"', '"toolwise\\u0000"').encode(),
        whole.encode() * 2,
    ]
    values: list[Any] = [-1, 2**70, 1.5, "x", [], {}, [None], True, {"a": [{"b": 1}]}, "\x00"]
    fields = ["messages", "model", "temperature", "top_p", "max_tokens", "seed", "stop", "n"]
    fields += ["tools", "tool_choice", "max_tool_calls", "stream", "stream_options", "no_such"]
    right: dict[str, list[Any]] = {
        "stream": [True],
        "stop": ["x", "\x00", []],
        "stream_options": [{}],
        "temperature": [1.5],
    }
    bad_content = [7, [7], [{"type": "text"}], [{"type": "image_url", "image_url": "x"}], {}]
    bad_urls = ["file:///etc/passwd", "data:,", "http://[", "http://127.0.0.1/x.png", "x" * 9999]
    bad_urls += ["data:image/png;base64,é", "http://a\x00b/", "https://.example.com/"]
    asked: list[dict[str, Any]] = body("say 1")["messages"]
    for arguments in (
        '{"code": "\\ud800"}',
        "[" * 50_000,
        '{"a":' * 50_000,
        f'{{"a": {"1" * 5000}}}',
    ):
        function = {"name": "python", "arguments": arguments}
        call = {"id": "c", "type": "function", "function": function}
        answered = {"role": "tool", "tool_call_id": "c", "content": "1"}
        messages = [*asked, {"role": "assistant", "tool_calls": [call]}, answered]
        wrong.append(json.dumps({"model": "toolwise", "messages": messages}).encode())
    while len(wrong) < count:
        request = body("say 1")
        match chosen.randrange(4):
            case 0:
                cut = chosen.randrange(len(whole) - 1)
                wrong = [*dict.fromkeys([*wrong, whole[:cut].encode()])]
                continue
            case 1:
                field = chosen.choice(fields)
                request[field] = chosen.choice([v for v in values if v not in right.get(field, ())])
            case 2:
                request["messages"] = [{"role": "user", "content": chosen.choice(bad_content)}]
            case _:
                image = {"type": "image_url", "image_url": {"url": chosen.choice(bad_urls)}}
                request["messages"] = [{"role": "user", "content": [image]}]
        wrong.append(json.dumps(request).encode())
        wrong = [*dict.fromkeys(wrong)]
    return wrong


def test_two_hundred_malformed_requests_are_refused_in_openais_terms(server: ServedProcess) -> None:
    wrong = malformed(200)
    assert len(set(wrong)) == 200
    with httpx.Client() as client:
        for content in wrong:
            reply = post(server, content, client)
            assert 400 <= reply.status_code < 500, content[:300]
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        asked = json.dumps(body("say <answer>4</answer>", max_tokens=2)).encode()
        assert post(server, asked, client).status_code == 200


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
