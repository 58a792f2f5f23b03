"""Keys, limits and malformed requests, at a real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import ServedProcess
from streaming_server import StreamingServer

ALICE, FLOOD, ONCE = "alice-0123456789abcdef", "flood-0123456789abcdef", "once-0123456789abcdef"
THRICE = "thrice-0123456789abcdef"


@pytest.fixture(scope="module")
def upstream() -> Iterator[StreamingServer]:
    with StreamingServer() as running:
        yield running


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "keys.yaml"
    path.write_text(
        f"- {{name: alice, key: {ALICE}}}\n"
        f"- {{name: flood, key: {FLOOD}}}\n"
        f"- {{name: once, key: {ONCE}, requests_per_minute: 1}}\n"
        f"- {{name: thrice, key: {THRICE}, requests_per_minute: 3}}\n"
    )
    return path


@pytest.fixture(scope="module")
def server(
    upstream: StreamingServer, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedProcess]:
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = ("--upstream", upstream.url, "--keys", str(keys))
    with ServedProcess(log, *arguments, "--concurrency", "2", "--queue", "4") as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(upstream: StreamingServer) -> None:
    for event in (upstream.waiting, upstream.let_go, upstream.gone):
        event.clear()


def ask(server: ServedProcess, key: str, text: str = "say <answer>4</answer>") -> Any:
    return server.client.with_options(api_key=key).chat.completions.create(
        model="toolwise", messages=[{"role": "user", "content": text}]
    )


def post(server: ServedProcess, content: bytes, key: str = ALICE, path: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    url = f"{server.origin}{path or '/v1/chat/completions'}"
    return httpx.post(url, content=content, headers=headers, timeout=60)


def test_a_known_key_is_answered_and_any_other_is_not(server: ServedProcess) -> None:
    assert ask(server, ALICE).choices[0].message.content == "4"
    for key in ("nobody-0123456789abcdef", "none"):
        with pytest.raises(openai.AuthenticationError) as refused:
            ask(server, key)
        assert refused.value.code == "invalid_api_key"
    assert server.metric("toolwise_refused_total", reason="invalid_api_key") >= 2


def test_keys_guard_every_protocol_and_neither_health_nor_the_page(server: ServedProcess) -> None:
    for path in ("/v1/models/toolwise:predict", "/v2/models/toolwise/infer", "/v1/models"):
        method = "GET" if path == "/v1/models" else "POST"
        reply = httpx.request(method, server.origin + path, json=None)
        assert reply.status_code == 401, path
        assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/v2/health/ready", "/v1/models/toolwise", "/metrics"):
        assert httpx.get(server.origin + path).status_code == 200, path
    assert post(server, b"{}", path="/v2/repository/models/toolwise/unload").status_code == 404


def test_a_key_that_asks_too_often_is_told_when_to_come_again(server: ServedProcess) -> None:
    ask(server, ONCE)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(server, ONCE)
    assert refused.value.code == "rate_limit_exceeded"
    assert 50 <= int(refused.value.response.headers["retry-after"]) <= 60
    ask(server, ALICE)


def test_each_instance_of_kserves_protocol_counts_as_a_request(
    server: ServedProcess, upstream: StreamingServer
) -> None:
    path = "/v1/models/toolwise:predict"
    before = len(upstream.requests)

    def several(count: int) -> bytes:
        return json.dumps({"instances": [body("say <answer>4</answer>")] * count}).encode()

    # More than it may ever send at once, however often it came again.
    never = post(server, several(4), THRICE, path)
    assert never.status_code == 400
    assert "3 requests a minute, and these are 4" in never.json()["error"]
    assert "retry-after" not in never.headers
    refused = post(server, several(3), THRICE, path)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert post(server, several(33), ALICE, path).status_code == 400
    assert len(upstream.requests) == before
    assert len(post(server, several(4), ALICE, path).json()["predictions"]) == 4


def test_a_client_that_does_not_read_its_answer_loses_its_place(
    upstream: StreamingServer, tmp_path: Path
) -> None:
    arguments = ("--upstream", upstream.url, "--request-seconds", "1", "--concurrency", "1")
    with ServedProcess(tmp_path / "log", *arguments) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        long = f"say <answer>{'x' * 100_000}</answer>"  # three characters an event: 8 MB
        content = json.dumps(body(long, stream=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}"
        client.sendall(head.encode() + b"\r\n\r\n" + content)
        client.recv(1)  # and no more
        assert server.metric("toolwise_requests_in_progress") == 1
        deadline = time.monotonic() + 30
        while server.metric("toolwise_requests_in_progress"):
            assert time.monotonic() < deadline
        answer = post(server, json.dumps(body("say <answer>4</answer>")).encode()).json()
        assert answer["choices"][0]["message"]["content"] == "4"
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_flood_of_one_key_holds_no_other_up(
    server: ServedProcess, upstream: StreamingServer
) -> None:
    content = json.dumps(body("hang")).encode()
    with ThreadPoolExecutor(13) as pool:
        flooding = [pool.submit(post, server, content, FLOOD) for _ in range(12)]
        while sum(map(done, flooding)) < 6:  # two are answered, four wait
            pass
        answering = pool.submit(ask, server, ALICE)
        while server.metric("toolwise_requests_waiting") < 4 or sum(map(done, flooding)) < 7:
            pass
        upstream.let_go.set()
        assert answering.result().choices[0].message.content == "4"
        statuses = sorted(one.result().status_code for one in flooding)
    assert statuses == [200] * 5 + [429] * 7


def done(one: Future[Any]) -> bool:
    return one.done()


def test_a_full_queue_says_when_to_come_again(
    server: ServedProcess, upstream: StreamingServer
) -> None:
    content = json.dumps(body("hang")).encode()
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(post, server, content) for _ in range(6)]
        while server.metric("toolwise_requests_waiting") < 4:
            pass
        refused = post(server, content)
        upstream.let_go.set()
        assert all(one.result().status_code == 200 for one in waiting)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1


def test_a_changed_key_file_holds_at_once(server: ServedProcess, keys: Path) -> None:
    before = keys.read_text()
    new = keys.with_suffix(".new")
    try:
        new.write_text(before + "- {name: new, key: new-0123456789abcdef}\n")
        new.replace(keys)
        assert ask(server, "new-0123456789abcdef").choices[0].message.content == "4"
    finally:
        new.write_text(before)
        new.replace(keys)
    with pytest.raises(openai.AuthenticationError):
        ask(server, "new-0123456789abcdef")


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "toolwise", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\nshort",
    ],
)
def test_what_is_not_http_does_no_harm(server: ServedProcess, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        reply = connection.recv(100)
    assert not reply or reply.split()[1].startswith(b"4")
    assert ask(server, ALICE).choices[0].message.content == "4"
