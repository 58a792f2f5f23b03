"""The model server, as its users meet it: a real process, the `openai` client, real tools."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image
from scripted_server import ScriptedServer, call
from served import ServedProcess, free_port

from toolwise.serving.settings import ServingSettings

PYTHON = call("python", code="print(6 * 7)")
SEARCH = call("text_search", query="capital of Atlantis")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class SpanCollector:
    """An OTLP/HTTP endpoint that keeps the spans it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.arrived = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                exported = ExportTraceServiceRequest.FromString(body)
                with collector.arrived:
                    for resource in exported.resource_spans:
                        for scope in resource.scope_spans:
                            if scope.scope.name == "toolwise":  # FastAPI has spans of its own
                                collector.spans += scope.spans
                    collector.arrived.notify_all()
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def of_trace(self, trace_id: str, count: int) -> list[Any]:
        """The spans of a trace, once there are `count` of them."""

        def found() -> list[Any]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        with self.arrived:
            assert self.arrived.wait_for(lambda: len(found()) >= count, timeout=120)
            return found()


@pytest.fixture(scope="module")
def collector() -> Iterator[SpanCollector]:
    collector = SpanCollector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    yield collector
    collector.server.shutdown()


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedServer]:
    with ScriptedServer(native=True) as running:
        yield running


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    row = {"id": "1", "title": "Atlantis", "text": "The capital of Atlantis is Poseidonis."}
    path.write_text(json.dumps(row))
    return path


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, no new sandbox starts."""
    return tmp_path_factory.mktemp("switch") / "broken"


@pytest.fixture(scope="module")
def server(
    upstream: ScriptedServer,
    corpus: Path,
    broken: Path,
    collector: SpanCollector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("server")
    bwrap = folder / "bwrap"
    bwrap.write_text(f'#!/bin/sh\n[ -e {broken} ] && exit 1\nexec {shutil.which("bwrap")} "$@"\n')
    bwrap.chmod(0o755)
    env = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    arguments = ("--upstream", upstream.url, "--corpus", str(corpus), "--max-tool-calls", "4")
    with ServedProcess(folder / "log", *arguments, env=env) as running:
        yield running


def ask(server: ServedProcess, script: str | list[Any], **fields: Any) -> Any:
    own = {name: fields.pop(name) for name in ("tools", "max_tool_calls") if name in fields}
    return server.client.chat.completions.create(
        model="toolwise",
        messages=[{"role": "user", "content": script}],
        extra_body=own,
        **fields,
    )


def until(holds: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
    return False


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_the_server_runs_the_tools_and_says_which(server: ServedProcess) -> None:
    reply = ask(server, f"{PYTHON}|{SEARCH}|<reason>both</reason><answer>42</answer>")

    assert reply.choices[0].message.content == "42"
    assert reply.choices[0].finish_reason == "stop"
    python, search = reply.toolwise["calls"]
    assert python["arguments"] == {"code": "print(6 * 7)"}
    assert python["result"].strip() == "42"
    assert python["seconds"] > 0
    assert search["result"] == "The capital of Atlantis is Poseidonis."
    assert reply.toolwise["tool_calls"] == 2
    assert reply.toolwise["abstained"] is False
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (30, 15)


def test_an_answer_without_a_call_abstains(server: ServedProcess) -> None:
    reply = ask(server, "<answer>4</answer>")
    assert reply.toolwise["abstained"] is True
    assert reply.toolwise["stop_reason"] == "answer"


def test_a_reply_without_answer_tags_comes_as_it_is(server: ServedProcess) -> None:
    assert ask(server, "It is four.").choices[0].message.content == "It is four."


def test_a_stream_tells_calls_as_they_end_and_then_the_answer(server: ServedProcess) -> None:
    chunks = list(
        ask(
            server,
            f"{PYTHON}|<answer>42</answer>",
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == "42"
    told = [c.toolwise for c in chunks if hasattr(c, "toolwise")]
    assert told[0]["calling"] == {"name": "python", "arguments": {"code": "print(6 * 7)"}}
    assert told[1]["call"]["name"] == "python"
    assert told[-1]["tool_calls"] == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 30
    assert len({c.id for c in chunks}) == 1


def test_an_image_reaches_the_model_and_the_python_session(
    server: ServedProcess, upstream: ScriptedServer
) -> None:
    script = f"{call('python', code='print(image.size)')}|<answer>seen</answer>"
    parts = [
        {"type": "image_url", "image_url": {"url": picture()}},
        {"type": "text", "text": script},
    ]
    reply = ask(server, parts)
    assert reply.toolwise["calls"][0]["result"].strip() == "(40, 30)"
    assert upstream.requests[-1]["messages"][0]["content"][0]["image_url"]["url"] == picture()


def test_the_conversation_reaches_the_model_as_it_was_sent(
    server: ServedProcess, upstream: ScriptedServer
) -> None:
    sent: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "<answer>two</answer>"},
    ]
    reply = server.client.chat.completions.create(model="toolwise", messages=sent)
    assert reply.choices[0].message.content == "two"
    received = upstream.requests[-1]["messages"]
    assert [m["role"] for m in received] == [m["role"] for m in sent]
    assert [m["content"][0]["text"] for m in received] == [m["content"] for m in sent]


def test_tools_none_offers_none_and_runs_none(
    server: ServedProcess, upstream: ScriptedServer
) -> None:
    for fields in ({"tools": "none"}, {"tool_choice": "none"}):
        reply = ask(server, "<answer>4</answer>", **fields)
        assert "tools" not in upstream.requests[-1]
        assert reply.toolwise["abstained"] is False
    assert ask(server, f"{PYTHON}|<answer>4</answer>", tools="none").toolwise["tool_calls"] == 0


def test_no_call_is_run_beyond_max_tool_calls(server: ServedProcess, tmp_path: Path) -> None:
    reply = ask(server, f"{PYTHON}|<answer>4</answer>", max_tool_calls=0)
    [refused] = reply.toolwise["calls"]
    assert refused["is_error"]
    assert "no tool calls left" in refused["result"]
    assert reply.choices[0].message.content == "4"

    reply = ask(server, f"{PYTHON}|{PYTHON}|<answer>4</answer>", max_tool_calls=1)
    assert [c["is_error"] for c in reply.toolwise["calls"]] == [False, True]


def test_a_tool_used_wrongly_is_told_to_the_model(
    server: ServedProcess, upstream: ScriptedServer
) -> None:
    reply = ask(server, f"{call('python', code='1 / 0')}|{call('magic')}|<answer>no</answer>")
    assert "ZeroDivisionError" in reply.toolwise["calls"][0]["result"]
    assert "magic" in reply.toolwise["calls"][1]["result"]
    assert reply.choices[0].message.content == "no"
    assert "ZeroDivisionError" in json.dumps(upstream.requests[-1]["messages"])


def test_sampling_fields_reach_the_model(server: ServedProcess, upstream: ScriptedServer) -> None:
    ask(server, "<answer>1</answer>", temperature=0.5, top_p=0.8, max_tokens=7, seed=3, stop="END")
    sent = upstream.requests[-1]
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.5, 0.8, 7)
    assert (sent["seed"], sent["stop"]) == (3, ["END"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"n": 9}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools"),
        ({"max_tool_calls": 5}, "max_tool_calls"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_field_is_a_400_that_names_it(
    server: ServedProcess, fields: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "x", stream=stream, **fields)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert param in refused.value.message


def test_a_bad_image_is_a_400_that_names_its_place(server: ServedProcess) -> None:
    parts = [
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}},
    ]
    with pytest.raises(openai.BadRequestError, match="public internet") as refused:
        ask(server, parts)
    assert refused.value.param == "messages[0].content[1].image_url.url"


def test_another_model_is_a_404(server: ServedProcess) -> None:
    with pytest.raises(openai.NotFoundError, match="toolwise") as refused:
        server.client.chat.completions.create(
            model="gpt", messages=[{"role": "user", "content": "x"}]
        )
    assert refused.value.param == "model"


@pytest.mark.parametrize("body", [b'{"model": ', b"[]", b""])
def test_a_body_that_is_no_request_is_refused_in_openais_terms(
    server: ServedProcess, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{server.origin}/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_too_large_or_of_unknown_length_is_refused_unread(server: ServedProcess) -> None:
    reply = httpx.post(f"{server.origin}/v1/chat/completions", content=iter([b"{}"]))
    assert reply.status_code == 411

    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", str(1 << 30))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/openai/v1/nothing", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/openai/v1/responses", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/openai/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_a_path_or_method_there_is_not_is_refused_in_openais_terms(
    server: ServedProcess, method: str, path: str, status: int
) -> None:
    reply = httpx.request(method, server.origin + path)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in reply.headers) == (status == 405)


def test_an_answer_that_its_turns_cut_off_ends_for_length(server: ServedProcess) -> None:
    for stream in (False, True):
        reply = ask(server, "|".join([PYTHON] * 7), stream=stream)
        last = [c for c in reply if c.choices][-1] if stream else reply
        assert last.choices[0].finish_reason == "length"
        assert last.toolwise["stop_reason"] == "max_turns"


def test_health_readiness_and_models(server: ServedProcess) -> None:
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/toolwise/ready"):
        assert httpx.get(server.origin + path).status_code == 200, path
    assert [m.id for m in server.client.models.list()] == ["toolwise"]
    listed = httpx.get(f"{server.origin}/v1/models").json()
    assert listed["models"] == ["toolwise"]


def test_kserves_own_protocol_answers_too(server: ServedProcess) -> None:
    url = f"{server.origin}/v1/models/toolwise:predict"
    chat = {"model": "toolwise", "messages": [{"role": "user", "content": "<answer>4</answer>"}]}
    [prediction] = httpx.post(url, json={"instances": [chat]}).json()["predictions"]
    assert prediction["choices"][0]["message"]["content"] == "4"
    refused = httpx.post(url, json={"instances": [{**chat, "n": 9}]})
    assert refused.status_code == 400
    assert "`n`" in refused.json()["error"]
    for body in ({}, [], {"instances": None}, {"instances": {"a": 1}}, {"instances": [1]}):
        assert httpx.post(url, json=body).status_code == 400, body


def test_metrics_count_calls_abstentions_and_time(server: ServedProcess) -> None:
    def counts() -> list[float]:
        return [
            server.metric("toolwise_tool_calls_total", tool="python"),
            server.metric("toolwise_tool_calls_total", tool="unknown"),
            server.metric("toolwise_abstained_total"),
            server.metric("toolwise_answers_total", tools="auto"),
            server.metric("toolwise_answers_total", tools="none"),
            server.metric("toolwise_request_seconds_count", tools="auto", outcome="answered"),
            server.metric("toolwise_request_seconds_count", tools="none", outcome="answered"),
            server.metric("toolwise_model_turn_seconds_count"),
            server.metric("toolwise_tool_seconds_count", tool="python"),
        ]

    before = counts()
    ask(server, f"{PYTHON}|{call('magic')}|<answer>42</answer>")
    ask(server, "<answer>4</answer>")
    ask(server, "<answer>4</answer>", tools="none")
    ask(server, "<answer>4</answer>", n=3)
    grown = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
    assert grown == [1, 1, 4, 5, 1, 3, 1, 8, 1]


def test_every_turn_and_call_is_a_span_of_the_callers_trace(
    server: ServedProcess, collector: SpanCollector
) -> None:
    ask(
        server,
        f"{PYTHON}|<answer>42</answer>",
        extra_headers={"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
    )
    spans = collector.of_trace(TRACE_ID, 4)
    by_name = {span.name: span for span in spans}
    assert sorted(span.name for span in spans) == [
        "chat",
        "chat",
        "execute_tool python",
        "invoke_agent",
    ]
    tool, request = by_name["execute_tool python"], by_name["invoke_agent"]
    assert tool.parent_span_id == request.span_id
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert tool.end_time_unix_nano > tool.start_time_unix_nano


def test_a_failing_model_is_a_503_and_the_server_lives(server: ServedProcess) -> None:
    timed = server.metric("toolwise_request_seconds_count", outcome="failed")
    failures = server.metric("toolwise_backend_failures_total")
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="scripted 403") as failed:
            ask(server, "!status 403", stream=stream)
        assert failed.value.status_code == 503
        assert "the model's server failed: HTTP 403" in failed.value.message
        assert "127.0.0.1" not in failed.value.message
    assert server.metric("toolwise_backend_failures_total") == failures + 2
    assert server.metric("toolwise_request_seconds_count", outcome="failed") == timed + 2
    assert ask(server, "<answer>4</answer>").choices[0].message.content == "4"


def test_a_failure_amid_a_stream_ends_it_with_an_error(server: ServedProcess) -> None:
    with pytest.raises(openai.APIError, match="scripted 403"):
        list(ask(server, f"{PYTHON}|!status 403", stream=True))


def test_a_broken_sandbox_is_a_503_and_the_server_lives(
    server: ServedProcess, broken: Path
) -> None:
    script = f"{PYTHON}|<answer>42</answer>"
    broken.touch()
    try:
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        with pytest.raises(openai.InternalServerError) as failed:
            ask(server, script)
        assert failed.value.status_code == 503
        assert ask(server, "<answer>4</answer>").choices[0].message.content == "4"
    finally:
        broken.unlink()
    # A sandbox that has just started may need more than one call's time on a busy machine.
    assert until(lambda: ask(server, script).toolwise["calls"][0]["result"].strip() == "42")


def test_requests_are_answered_while_another_waits(
    server: ServedProcess, upstream: ScriptedServer
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, "!hold")
        assert upstream.holding.wait(120)
        try:
            assert ask(server, "<answer>4</answer>").choices[0].message.content == "4"
            assert not waiting.done()
        finally:
            upstream.let_go.set()
        assert waiting.result().choices[0].message.content == "held"


def test_sigterm_finishes_a_request_in_flight(tmp_path: Path) -> None:
    with (
        ScriptedServer() as upstream,
        ServedProcess(tmp_path / "log", "--upstream", upstream.url) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(ask, server, "!hold")
        assert upstream.holding.wait(120)
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: not server.is_ready())
        assert server.process.poll() is None
        upstream.let_go.set()
        assert waiting.result().choices[0].message.content == "held"
        assert server.process.wait(120) == 0


def test_a_request_that_takes_too_long_is_a_503(tmp_path: Path) -> None:
    with (
        ScriptedServer() as upstream,
        ServedProcess(
            tmp_path / "log", "--upstream", upstream.url, "--request-seconds", "1"
        ) as server,
    ):
        with pytest.raises(openai.InternalServerError, match="within 1 s") as failed:
            ask(server, "!hold")
        assert failed.value.status_code == 503
        assert failed.value.response.headers["x-should-retry"] == "false"
        url = f"{server.origin}/v1/models/toolwise:predict"
        sleep = {"name": "python", "arguments": {"code": "import time; time.sleep(0.6)"}}
        script = f"<tool_call>{json.dumps(sleep)}</tool_call>|<answer>4</answer>"
        chat = {"model": "toolwise", "messages": [{"role": "user", "content": script}]}
        reply = httpx.post(url, json={"instances": [chat] * 3}, timeout=60)
        assert reply.status_code == 503  # they share the second
        upstream.let_go.set()
        assert ask(server, "<answer>4</answer>").choices[0].message.content == "4"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--model-dir"),
        (["--model-dir", "nowhere"], "nowhere"),
        (["--upstream", "http://127.0.0.1:9/v1", "--max-turns", "none"], "--max-turns none"),
        (["--upstream", "http://127.0.0.1:9/v1", "--corpus", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--upstream", "http://127.0.0.1:9/v1", "--isolation", "trust"], "trust"),
    ],
)
def test_a_wrong_flag_ends_the_start_with_its_name(arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "toolwise.serving", "--port", str(free_port()), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_explains_every_option() -> None:
    command = [sys.executable, "-m", "toolwise.serving", "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True).stdout.split())
    for name, setting in ServingSettings.model_fields.items():
        assert f"--{name.replace('_', '-')} {name.upper()}" in text
        assert " ".join((setting.description or name).split()) in text
    assert "Port to listen on. (default: 8080)" in text


def test_a_taken_port_is_told_before_anything_is_loaded(server: ServedProcess) -> None:
    command = [sys.executable, "-m", "toolwise.serving", "--model-dir", "nowhere"]
    ended = subprocess.run(
        [*command, "--port", str(server.port)], capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 2
    assert f"port {server.port}" in ended.stderr
    assert "--port" in ended.stderr
