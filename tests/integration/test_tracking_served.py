"""Requests of an endpoint as MLflow traces, which never hold an answer up."""

import base64
import time
from collections.abc import Iterator

import mlflow
import pytest
from mlflow.entities import Trace
from mlflow.tracking import MlflowClient

from toolwise.agent import CallRecord, Rollout, Turn
from toolwise.data import Task
from toolwise.tools import ToolResult
from toolwise.tracking import Connection
from toolwise.tracking.served import WAITING, ServedRequest, ServedTraces

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def uri(mlflow_uri: str) -> str:
    """MLflow, with its database made: that takes longer than a trace may."""
    Connection(mlflow_uri).request(lambda client: client.search_experiments())
    return mlflow_uri


@pytest.fixture(autouse=True)
def address() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def turn(seconds: float, read: int, written: int) -> Turn:
    return Turn("", "stop", prompt_tokens=read, completion_tokens=written, seconds=seconds)


def asked_about_a_picture() -> Rollout:
    """A call that failed, and the answer all the same."""
    failed = ToolResult("ZeroDivisionError", is_error=True, seconds=0.125)
    call = {"name": "python", "arguments": {"code": "1/0"}}
    return Rollout(
        task=Task("request", "request", "chat", "How many?", (), (PIXEL,)),
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": PIXEL},
                    {"type": "text", "text": "How many?"},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call_0", "type": "function", "function": call}],
            },
            {
                "role": "tool",
                "tool_call_id": "call_0",
                "content": [{"type": "text", "text": "ZeroDivisionError"}],
            },
            {"role": "assistant", "content": "<answer>2</answer>"},
        ],
        turns=[turn(0.5, 20, 12), turn(0.25, 40, 5)],
        calls=[CallRecord("python", {"code": "1/0"}, failed)],
        answer="2",
        stop_reason="answer",
    )


def request(request_id: str, error: str | None = None) -> ServedRequest:
    return ServedRequest(request_id, asked_about_a_picture(), 1, time.time_ns(), 1.5, error)


def traces_of(uri: str, experiment: str) -> list[Trace]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_traces(locations=[found.experiment_id]))


def test_a_request_is_a_trace_with_its_turns_calls_tokens_times_errors_and_images(uri: str):
    traces = ServedTraces("served", 1.0, uri)
    traces.offer(request("r-1"))
    traces.close(600)
    (trace,) = traces_of(uri, "served")
    assert trace.info.tags["toolwise.request"] == "r-1"
    assert trace.info.execution_duration == 1500
    root, first, call, second = sorted(
        trace.data.spans, key=lambda span: (span.start_time_ns, span.parent_id is not None)
    )
    assert [s.span_type for s in (root, first, call, second)] == [
        *("AGENT", "CHAT_MODEL", "TOOL", "CHAT_MODEL")
    ]
    assert {s.parent_id for s in (first, call, second)} == {root.span_id}
    assert call.inputs == {"code": "1/0"}
    assert (call.status.status_code.value, call.status.description) == (
        "ERROR",
        "ZeroDivisionError",
    )
    assert call.end_time_ns is not None
    assert call.end_time_ns - call.start_time_ns == 125_000_000
    assert trace.info.token_usage == {"input_tokens": 60, "output_tokens": 17, "total_tokens": 77}
    assert root.outputs == {"answer": "2", "stop_reason": "answer"}
    image = root.inputs["messages"][0]["content"][0]["image_url"]["url"]
    assert image.startswith("mlflow-attachment://")
    assert "image%2Fpng" in image


def test_a_request_that_failed_is_an_error_and_always_traced(uri: str):
    traces = ServedTraces("failed", 0.0, uri)
    traces.offer(request("r-2"))
    traces.offer(request("r-3", error="no answer within 60 s"))
    traces.close(600)
    (trace,) = traces_of(uri, "failed")
    assert trace.info.tags["toolwise.request"] == "r-3"
    assert trace.info.state.value == "ERROR"


def test_where_mlflow_is_away_traces_are_dropped_and_nobody_waits(
    caplog: pytest.LogCaptureFixture,
):
    traces = ServedTraces("away", 1.0, NOBODY)
    started = time.monotonic()
    for number in range(3 * WAITING):
        traces.offer(request(f"r-{number}"))
    assert time.monotonic() - started < 5
    traces.close(600)
    assert traces.dropped == 3 * WAITING
    assert caplog.text.count("a trace was dropped") == 1
