"""Rollouts as MLflow traces: a span per model turn and per tool call.

MLflow exports traces in the background and only warns where it cannot. Images, which stand in the
messages as data URIs, it keeps as attachments of the trace.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LiveSpan, SpanStatus, SpanStatusCode, SpanType
from mlflow.tracing.constant import SpanAttributeKey


@dataclass(frozen=True, slots=True)
class TracedRollout:
    """A rollout that is over, as its trace shows it.

    Args:
        name: of the trace.
        messages: the conversation, OpenAI's, images as data URIs.
        asked: how many of them were there before the model's first turn.
        turns: `seconds`, `prompt_tokens` and `completion_tokens` of each model turn, in order.
        calls: `name`, `arguments`, `seconds` and `is_error` of each tool call, in order.
        outputs: what came out.
        tags: what traces are filtered by.
        metadata: MLflow's own (source run, model).
        error: what ended it, where it was not an answer.
        started: nanoseconds since 1970; without it, it ends now.
        seconds: how long it took in all; without it, as long as its parts.
    """

    name: str
    messages: Sequence[Mapping[str, Any]]
    asked: int
    turns: Sequence[Mapping[str, Any]]
    calls: Sequence[Mapping[str, Any]]
    outputs: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    started: int | None = None
    seconds: float | None = None


def trace_samples(samples: Path, experiment_id: str, run_id: str, model_id: str) -> None:
    """Trace the rollouts in an evaluation's `samples.jsonl`, and wait until MLflow has them."""
    metadata = {"mlflow.sourceRun": run_id, "mlflow.modelId": model_id}
    with samples.open(encoding="utf-8") as lines:
        for line in lines:
            sample = json.loads(line)
            rollout = TracedRollout(
                name=f"{sample['ability']} {sample['task_id']}",
                messages=sample["messages"],
                asked=1,
                turns=sample["turns"],
                calls=sample["calls"],
                outputs={"answer": sample["answer"], "correct": sample["correct"]},
                tags={key: str(sample[key]) for key in _TAGS},
                metadata=metadata,
            )
            trace(rollout, experiment_id)
    mlflow.flush_trace_async_logging()


_TAGS = ("ability", "mode", "correct", "tool_calls")


def trace(rollout: TracedRollout, experiment_id: str) -> str:
    """Hand a rollout to MLflow; returns the trace's id.

    Its spans are laid end to end, each as long as it took; where calls of a turn or requests in a
    batch overlapped, that is not seen.
    """
    parts = (*rollout.turns, *rollout.calls)
    seconds = sum(part["seconds"] for part in parts) if rollout.seconds is None else rollout.seconds
    clock = _ns(time.time() - seconds) if rollout.started is None else rollout.started
    ended = clock + _ns(seconds)
    root = mlflow.start_span_no_context(
        rollout.name,
        span_type=SpanType.AGENT,
        inputs={"messages": list(rollout.messages[: rollout.asked])},
        experiment_id=experiment_id,
        start_time_ns=clock,
        tags=dict(rollout.tags),
        metadata=dict(rollout.metadata),
    )
    turns, calls = iter(rollout.turns), iter(rollout.calls)
    unread = list(rollout.messages[: rollout.asked])
    for message in rollout.messages[rollout.asked :]:
        if message["role"] == "assistant":
            part = next(turns)
            span = _span(root, "model turn", SpanType.CHAT_MODEL, {"messages": unread}, clock)
            span.set_outputs({"choices": [{"message": message}]})
            span.set_attribute(SpanAttributeKey.CHAT_USAGE, _usage(part))
            unread = []
        else:
            part = next(calls)
            name = part["name"] or "malformed call"
            span = _span(root, name, SpanType.TOOL, part["arguments"], clock)
            span.set_outputs(message["content"])
            if part["is_error"]:
                _failed(span, _text(message))
            unread.append(message)
        clock += _ns(part["seconds"])
        span.end(end_time_ns=clock)
    root.set_outputs(dict(rollout.outputs))
    if rollout.error is not None:
        _failed(root, rollout.error)
    root.end(end_time_ns=max(clock, ended))
    return root.trace_id


def _span(root: LiveSpan, name: str, kind: str, inputs: Any, started: int) -> LiveSpan:
    return mlflow.start_span_no_context(
        name, span_type=kind, parent_span=root, inputs=inputs, start_time_ns=started
    )


def _failed(span: LiveSpan, why: str) -> None:
    status: Any = SpanStatus(SpanStatusCode.ERROR, why)  # taken whole, though typed as its code
    span.set_status(status)


def _usage(turn: Mapping[str, Any]) -> dict[str, int]:
    read, written = turn["prompt_tokens"], turn["completion_tokens"]
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _text(message: Mapping[str, Any]) -> str:
    """What a tool's message says, without its pictures."""
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text")


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
