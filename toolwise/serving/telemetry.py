"""What a running endpoint tells: Prometheus metrics and OpenTelemetry spans."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import Counter, Gauge, Histogram

from toolwise.agent import CallRecord, Rollout, Turn
from toolwise.errors import InputError

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_tracer = trace.get_tracer("toolwise")  # of the provider that is set later

TOOL_CALLS = Counter("toolwise_tool_calls", "Tool calls made.", ["tool"])
ANSWERS = Counter("toolwise_answers", "Answers, one for each choice of a request.", ["tools"])
ABSTAINED = Counter("toolwise_abstained", "Answers without a call though tools were offered.")
FAILURES = Counter("toolwise_backend_failures", "Requests ended by a model or tool backend.")
REFUSED = Counter("toolwise_refused", "Requests turned away (401, 429).", ["reason"])
IN_PROGRESS = Gauge("toolwise_requests_in_progress", "Requests being answered.")
WAITING = Gauge("toolwise_requests_waiting", "Requests waiting for a place.")
REQUEST_SECONDS = Histogram(
    "toolwise_request_seconds",
    "Time until a request was answered, or failed.",
    ["tools", "outcome"],
    buckets=_SECONDS,
)
TURN_SECONDS = Histogram(
    "toolwise_model_turn_seconds", "Time the model took for one turn.", buckets=_SECONDS
)
TOOL_SECONDS = Histogram(
    "toolwise_tool_seconds", "Time one tool call took.", ["tool"], buckets=_SECONDS
)


def start_tracing() -> TracerProvider:
    """Export spans as OpenTelemetry's environment variables say.

    `OTEL_TRACES_EXPORTER` is `otlp` (HTTP; the default once an OTLP endpoint is set), `console`
    or `none`, which makes no spans at all.

    Raises:
        InputError: no such exporter is installed.
    """
    os.environ.setdefault("OTEL_SERVICE_NAME", "toolwise")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    default = "otlp" if any(os.environ.get(name) for name in endpoints) else "none"
    provider = TracerProvider()
    names = (os.environ.get("OTEL_TRACES_EXPORTER") or default).split(",")
    for name in names:
        if name == "none":
            continue
        entry = "otlp_proto_http" if name == "otlp" else name
        found = list(entry_points(group="opentelemetry_traces_exporter", name=entry))
        if not found:
            raise InputError(
                f"OTEL_TRACES_EXPORTER={name}: no such exporter is installed; use otlp or console"
            )
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    if names != ["none"]:
        trace.set_tracer_provider(provider)
    return provider


class RequestTrace:
    """The span and the metrics of one request; `event` observes the agent loop."""

    def __init__(self, span: trace.Span, tool_names: Collection[str]) -> None:
        self._context = trace.set_span_in_context(span)
        self._span = span
        self._tool_names = tool_names

    def event(self, rollout: Rollout, happened: Turn | CallRecord) -> None:
        """A span and a measurement for a turn or call that has just ended."""
        if isinstance(happened, Turn):
            TURN_SECONDS.observe(happened.seconds)
            self._child(
                "chat",
                happened.seconds,
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.usage.input_tokens": happened.prompt_tokens,
                    "gen_ai.usage.output_tokens": happened.completion_tokens,
                    "gen_ai.response.finish_reasons": happened.finish_reason,
                },
            )
            return
        # The model may write any name; labels are kept to the tools there are.
        tool = happened.name if happened.name in self._tool_names else "unknown"
        TOOL_CALLS.labels(tool).inc()
        TOOL_SECONDS.labels(tool).observe(happened.result.seconds)
        self._child(
            f"execute_tool {tool}",
            happened.result.seconds,
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": happened.name,
                "gen_ai.tool.call.arguments": json.dumps(happened.arguments, ensure_ascii=False),
                "toolwise.is_error": happened.result.is_error,
            },
        )

    def answered(self, rollout: Rollout, tools_offered: bool) -> None:
        """The request has an answer: one for each of its choices."""
        ANSWERS.labels(_offered(tools_offered)).inc()
        if tools_offered and rollout.tool_calls == 0:
            ABSTAINED.inc()
        self._span.set_attributes(
            {
                "toolwise.tool_calls": rollout.tool_calls,
                "toolwise.stop_reason": rollout.stop_reason,
            }
        )

    def _child(self, name: str, seconds: float, attributes: Mapping[str, str | int | bool]) -> None:
        end = time.time_ns()
        start = end - int(seconds * 1e9)
        span = _tracer.start_span(name, self._context, attributes=attributes, start_time=start)
        span.end(end)


def _offered(tools: bool) -> str:
    """The label `tools`, in the words of a request's field of that name."""
    return "auto" if tools else "none"


@contextmanager
def trace_request(
    model: str,
    tools_offered: bool,
    tool_names: Collection[str],
    headers: Mapping[str, str],
    caller: str,
) -> Iterator[RequestTrace]:
    """The request's span, a child of the client's (`traceparent`), and its latency.

    Args:
        model: name of the model.
        tools_offered: whether the model may call tools.
        tool_names: the tools there are.
        headers: of the HTTP request.
        caller: name of the API key.
    """
    started = time.perf_counter()
    tools, outcome = _offered(tools_offered), "failed"
    with _tracer.start_as_current_span(
        "invoke_agent",
        propagate.extract(dict(headers)),
        attributes={
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.request.model": model,
            "toolwise.tools": tools,
            "toolwise.caller": caller,
        },
    ) as span:
        try:
            yield RequestTrace(span, tool_names)
            outcome = "answered"
        finally:
            REQUEST_SECONDS.labels(tools, outcome).observe(time.perf_counter() - started)
