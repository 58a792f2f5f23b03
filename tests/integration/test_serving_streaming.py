"""Streams: the answer as the upstream writes it, failures amid it, clients that leave."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from PIL import Image
from served import ServedProcess
from streaming_server import StreamingServer

from toolwise.errors import BackendError, InputError
from toolwise.serving.asking import ask_stream
from toolwise.serving.deploy import Endpoint, ask


@pytest.fixture(scope="module")
def upstream() -> Iterator[StreamingServer]:
    with StreamingServer() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    upstream: StreamingServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedProcess]:
    log = tmp_path_factory.mktemp("server") / "log"
    with ServedProcess(log, "--upstream", upstream.url, "--request-seconds", "60") as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(upstream: StreamingServer) -> None:
    for event in (upstream.waiting, upstream.let_go, upstream.gone):
        event.clear()


def body(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "toolwise", "messages": messages, "stream": True, **fields}


def stream(server: ServedProcess, text: str, **fields: Any) -> Any:
    return server.client.chat.completions.create(**body(text, **fields))


def answer_of(chunks: Any, index: int = 0) -> list[str]:
    deltas = [(c.choices[0].index, c.choices[0].delta.content) for c in chunks if c.choices]
    return [text for choice, text in deltas if choice == index and text]


def test_the_answer_comes_while_the_model_still_writes(
    server: ServedProcess, upstream: StreamingServer
) -> None:
    chunks = iter(stream(server, "wait"))
    assert next(chunks).choices[0].delta.role == "assistant"
    assert next(chunks).choices[0].delta.content == "first"
    assert not upstream.let_go.is_set()
    upstream.let_go.set()
    assert "".join(answer_of(chunks)) == " second"


def test_pieces_add_up_to_the_answer_without_its_tags(server: ServedProcess) -> None:
    text = "say <reason>a < b</reason><answer> a < b </answer>"
    pieces = answer_of(stream(server, text))
    assert "".join(pieces) == "a < b"
    assert len(pieces) > 1
    [whole] = server.client.chat.completions.create(**body(text, stream=False)).choices
    assert whole.message.content == "a < b"


def test_a_call_is_told_as_it_begins_and_as_it_ends(server: ServedProcess) -> None:
    chunks = list(stream(server, "call print(6 * 7)", stream_options={"include_usage": True}))
    told = [c.toolwise for c in chunks if hasattr(c, "toolwise")]
    assert told[0] == {"calling": {"name": "python", "arguments": {"code": "print(6 * 7)"}}}
    assert told[1]["call"]["result"] == "42"
    assert told[2]["tool_calls"] == 1
    assert "".join(answer_of(chunks)) == "done"
    assert chunks[-1].usage.total_tokens == 30


def test_every_choice_streams_under_its_index(
    server: ServedProcess, upstream: StreamingServer
) -> None:
    before = len(upstream.requests)
    chunks = list(stream(server, "say <answer>four</answer>", n=3, seed=7, temperature=1))
    assert ["".join(answer_of(chunks, index)) for index in range(3)] == ["four"] * 3
    ends = [c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason]
    assert sorted(end.index for end in ends) == [0, 1, 2]
    assert sorted(sent["seed"] for sent in upstream.requests[before:]) == [7, 8, 9]


def test_what_is_streamed_is_openais_form_and_nothing_else(server: ServedProcess) -> None:
    url = f"{server.origin}/v1/chat/completions"
    with httpx.stream("POST", url, json=body("call 1"), timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = [line for line in reply.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    for event in events[:-1]:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk"
        assert {"id", "created", "model", "choices"} <= set(chunk)


@pytest.mark.parametrize(
    ("how", "streamed"), [("garbage", True), ("endless", True), ("html", True), ("html", False)]
)
def test_an_upstream_that_makes_no_sense_is_a_503(
    server: ServedProcess, how: str, streamed: bool
) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        list(stream(server, how, stream=streamed))
    assert failed.value.status_code == 503
    assert "".join(answer_of(stream(server, "say <answer>4</answer>"))) == "4"


@pytest.mark.parametrize(("how", "reason"), [("cut", "broke off"), ("late", "out of memory")])
def test_an_answer_that_breaks_off_ends_in_an_error(
    server: ServedProcess, how: str, reason: str
) -> None:
    chunks = iter(stream(server, how))
    with pytest.raises(openai.APIError, match=reason):
        list(chunks)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_cancels_the_upstreams_work(
    server: ServedProcess, upstream: StreamingServer, streamed: bool
) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    asked = json.dumps(body("hang", stream=streamed))
    connection.request("POST", "/v1/chat/completions", asked)
    assert upstream.waiting.wait(60)
    assert not upstream.gone.is_set()
    connection.close()
    assert upstream.gone.wait(60)


def test_a_client_that_leaves_kills_its_tool_call(
    upstream: StreamingServer, tmp_path: Path
) -> None:
    patient = (str(Path(__file__).with_name("patient_server.py")),)
    with ServedProcess(tmp_path / "log", "--upstream", upstream.url, program=patient) as server:
        list(stream(server, "call print(1)"))  # the sandboxes are there
        process = psutil.Process(server.process.pid)
        before = alive(process.children(recursive=True))
        # Eight processes that sleep: only the call itself can have begun them.
        code = "import os, time; [os.fork() for _ in range(3)]; time.sleep(600)"
        url = f"{server.origin}/v1/chat/completions"
        with httpx.stream("POST", url, json=body(f"call {code}"), timeout=60) as reply:
            lines = reply.iter_lines()  # kept: the stream is closed with it
            assert any("calling" in line for line in lines)
            until(lambda: len(alive(process.children(recursive=True)) - before) >= 8)
            calling = alive(process.children(recursive=True)) - before
        until(lambda: len(alive(calling)) <= len(calling) - 8)


def alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Those that run."""
    return {p for p in processes if p.is_running() and _state(p) != psutil.STATUS_ZOMBIE}


def _state(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        assert time.monotonic() < deadline
        pause.wait(0.02)  # what is waited for may need the core


def test_one_connection_serves_request_after_request(
    server: ServedProcess, upstream: StreamingServer
) -> None:
    list(stream(server, "say <answer>4</answer>"))
    upstream.connections.clear()
    for _ in range(8):
        list(stream(server, "say <answer>4</answer>"))
    assert len(upstream.connections) == 1


def test_toolwise_ask_tells_calls_answer_and_time(server: ServedProcess, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    command = [sys.executable, "-m", "toolwise.cli", "ask", "call print(image.size)"]
    command += ["--image", str(tmp_path / "red.png"), "--url", f"{server.origin}/v1"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=600)
    called, answer, how = asked.stdout.splitlines()
    assert called.startswith("called python {'code': 'print(image.size)'} in ")
    assert answer == "done"
    assert how.startswith("1 call, 30 tokens, ")


@pytest.mark.parametrize("image", ["nowhere.png", __file__, str(Path(__file__).parent)])
def test_toolwise_ask_names_a_picture_it_cannot_read(image: str) -> None:
    command = [sys.executable, "-m", "toolwise.cli", "ask", "x", "--image", image]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert asked.returncode == 1
    assert image in "".join(asked.stderr.split("\n"))
    assert "Traceback" not in asked.stderr


@pytest.mark.parametrize("key", ["alicé-0123456789abc", "two words"])
def test_what_cannot_be_an_api_key_is_told_by_its_variable(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLWISE_API_KEY", key)
    with pytest.raises(InputError, match="TOOLWISE_API_KEY holds no API key"):
        list(ask_stream("http://127.0.0.1:9/v1", "toolwise", "x"))


@pytest.mark.parametrize("url", ["http://[", "http://127.0.0.1:no/v1", "nonsense"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(InputError, match="is not an http or https URL"):
        list(ask_stream(url, "toolwise", "x"))


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    server: ServedProcess, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("TOOLWISE_API_KEY", "")  # no key
    url = f"http://{name}:{server.port}/v1"
    told = list(ask_stream(url, "toolwise", "say <answer>4</answer>"))
    assert "".join(piece for piece in told if isinstance(piece, str)) == "4"
    reply = ask(Endpoint(url, "toolwise"), "say <answer>4</answer>")
    assert reply.answer == "4"


def test_a_server_that_is_not_toolwises_is_told(upstream: StreamingServer) -> None:
    with pytest.raises(BackendError, match="without the field `toolwise`"):
        ask(Endpoint(upstream.url, "toolwise"), "say <answer>4</answer>")
