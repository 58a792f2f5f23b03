"""What goes wrong around the server: it answers what it can, says what it cannot, and lives."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from prometheus_client import REGISTRY
from scripted_engine import ScriptedEngine
from served import ServedProcess, free_port
from starlette.exceptions import HTTPException
from streaming_server import StreamingServer
from test_serving_streaming import alive, until

from toolwise.serving.guard import ARRIVAL, Arrival
from toolwise.serving.model import AgentModel
from toolwise.serving.settings import ServingSettings


def ask(server: ServedProcess, text: str = "say <answer>4</answer>", **fields: Any) -> Any:
    return server.client.chat.completions.create(
        model="toolwise", messages=[{"role": "user", "content": text}], **fields
    )


def streamed(server: ServedProcess, text: str) -> str:
    chunks = ask(server, text, stream=True)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_an_upstream_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    with ServedProcess(
        tmp_path / "log", "--upstream", f"http://127.0.0.1:{port}/v1", "--request-seconds", "20"
    ) as server:
        with StreamingServer(port):
            assert streamed(server, "say <answer>4</answer>") == "4"
        with pytest.raises(openai.InternalServerError) as failed:
            ask(server)
        assert failed.value.status_code == 503
        assert server.is_ready()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(streamed, server, "say <answer>5</answer>")
            with StreamingServer(port):
                assert waiting.result() == "5"
                assert streamed(server, "say <answer>6</answer>") == "6"


def test_a_deadline_ends_an_upstream_that_hangs(tmp_path: Path) -> None:
    with (
        StreamingServer() as upstream,
        ServedProcess(
            tmp_path / "log", "--upstream", upstream.url, "--request-seconds", "5"
        ) as server,
    ):
        with pytest.raises(openai.InternalServerError, match="within 5 s"):
            ask(server, "hang")
        assert upstream.gone.wait(60)


def test_a_deadline_kills_the_tool_call_under_way(tmp_path: Path) -> None:
    patient = (str(Path(__file__).with_name("patient_server.py")),)
    with (
        StreamingServer() as upstream,
        ServedProcess(
            tmp_path / "log",
            "--upstream",
            upstream.url,
            "--request-seconds",
            "10",
            program=patient,
        ) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        assert streamed(server, "call print(1)") == "done"  # the sandboxes are there
        process = psutil.Process(server.process.pid)
        before = alive(process.children(recursive=True))
        # Eight processes that sleep: only the call itself can have begun them.
        code = "import os, time; [os.fork() for _ in range(3)]; time.sleep(600)"
        asking = pool.submit(streamed, server, f"call {code}")
        until(lambda: len(alive(process.children(recursive=True)) - before) >= 8)
        calling = alive(process.children(recursive=True)) - before
        with pytest.raises(openai.APIError, match="within 10 s"):
            asking.result()
        until(lambda: len(alive(calling)) <= len(calling) - 8)


def test_a_disk_that_takes_no_more_stops_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        StreamingServer() as upstream,
        ServedProcess(log, "--upstream", upstream.url) as server,
    ):
        # No file can grow any more, the log included.
        psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_FSIZE, (0, 0))
        size = log.stat().st_size
        assert streamed(server, "say <answer>4</answer>") == "4"
        with pytest.raises(openai.InternalServerError):
            list(ask(server, "garbage", stream=True))
        assert streamed(server, "call print(6 * 7)") == "done"
        assert "42" in json.dumps(upstream.requests[-1]["messages"])
        assert log.stat().st_size == size


class Failing(ScriptedEngine):
    """A model in process whose machine fails."""

    def __init__(self, reason: int) -> None:
        super().__init__(self._fail)
        self._reason = reason

    def _fail(self, *_: object) -> str:
        raise OSError(self._reason, os.strerror(self._reason))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.ETIMEDOUT, "Connection timed out"),  # an OSError that is a TimeoutError
    ],
)
async def test_a_machine_that_fails_is_a_503_and_counted_among_the_failures(
    reason: int, said: str
) -> None:
    model = AgentModel(ServingSettings(), lambda: Failing(reason), ())
    model.load()
    ARRIVAL.set(Arrival.at_once("anyone", 60))
    asked = {"messages": [{"role": "user", "content": "hi"}], "temperature": 1.0}
    before = REGISTRY.get_sample_value("toolwise_backend_failures_total") or 0
    with pytest.raises(HTTPException, match=said) as failed:
        await model.predict({"instances": [{"model": "toolwise", **asked}]})
    assert failed.value.status_code == 503
    assert REGISTRY.get_sample_value("toolwise_backend_failures_total") == before + 1


def test_a_killed_tool_pool_is_replaced(tmp_path: Path) -> None:
    with (
        StreamingServer() as upstream,
        ServedProcess(tmp_path / "log", "--upstream", upstream.url) as server,
    ):
        chunks = iter(ask(server, "call import time; time.sleep(5)", stream=True))
        assert any("calling" in getattr(chunk, "toolwise", {}) for chunk in chunks)
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        with suppress(openai.APIError):  # unless another sandbox takes the call
            list(chunks)
        until(lambda: streamed(server, "call print(6 * 7)") == "done")


def test_sigterm_under_load_finishes_what_it_has_and_refuses_what_is_new(tmp_path: Path) -> None:
    with (
        StreamingServer() as upstream,
        ServedProcess(tmp_path / "log", "--upstream", upstream.url) as server,
        ThreadPoolExecutor(20) as pool,
    ):
        answers = [pool.submit(streamed, server, "wait") for _ in range(10)]
        calls = [pool.submit(streamed, server, "call import time; time.sleep(1)") for _ in range(4)]
        until(lambda: len(upstream.requests) >= 14)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not server.is_ready())
        with pytest.raises(openai.APIConnectionError):
            ask(server)
        assert server.process.poll() is None
        upstream.let_go.set()
        assert [answer.result() for answer in answers] == ["first second"] * 10
        assert [answer.result() for answer in calls] == ["done"] * 4
        assert server.process.wait(60) == 0


def test_nothing_of_the_server_outlives_it(tmp_path: Path) -> None:
    with StreamingServer() as upstream:
        with ServedProcess(tmp_path / "log", "--upstream", upstream.url) as server:
            streamed(server, "call print(1)")
            children = psutil.Process(server.process.pid).children(recursive=True)
            assert children
            server.process.kill()
            server.process.wait()
        psutil.wait_procs(children, timeout=60)
        assert not [child for child in children if child.is_running()]
