"""What an evaluation keeps of a rollout: its score, and of some the whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from toolwise.agent import Rollout
from toolwise.data import Message, data_uri
from toolwise.evaluation.benchmarks import (
    AnswerJudge,
    PublishedBenchmark,
    benchmark_names,
    published,
)
from toolwise.evaluation.metrics import Graded, Mode, RolloutScore, score
from toolwise.json_encoding import encode_json


@cache
def benchmark_of(source: str) -> PublishedBenchmark | None:
    """The published benchmark whose items carry `source`; None where there is none."""
    return published(source) if source in benchmark_names() else None


def score_rollout(
    rollout: Rollout, mode: Mode, sample: int, judge: AnswerJudge | None = None
) -> RolloutScore:
    """Score a rollout as the benchmark of its task does, or else by the task's answer type.

    Raises:
        BackendError: the judge failed.
    """
    benchmark = benchmark_of(rollout.task.source)
    if benchmark is None:
        return score(rollout, mode, sample)
    answer = given_answer(rollout)
    worth = benchmark.score(rollout.task, answer, judge)
    return score(rollout, mode, sample, Graded(answer, worth.correct, worth.by))


def given_answer(rollout: Rollout) -> str | None:
    """The text in `<answer>`, or all of the last turn where the model ended without the tag.

    Models that were not trained on the tag answer published benchmarks too; where in a free text
    the answer stands is for the benchmark's scorer to say. A turn that was cut has no answer.
    """
    if rollout.answer is None and rollout.stop_reason == "no_answer":
        return rollout.messages[-1]["content"] or None
    return rollout.answer


def json_line(value: Any) -> str:
    """`value` (dataclasses and all) as a line of JSON."""
    return encode_json(value).decode() + "\n"


def whole_rollout(rollout: Rollout, row: RolloutScore) -> dict[str, Any]:
    """A rollout as a line of `samples.jsonl`, images as data URIs."""
    turns, calls = records(rollout)
    return {
        **asdict(row),
        "accepted": list(rollout.task.answer),
        "messages": portable_messages(rollout.messages),
        "turns": turns,
        "calls": calls,
    }


def records(rollout: Rollout) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the turns and the calls of a rollout cost, in order; the messages say the rest."""
    turns = [
        {
            "seconds": turn.seconds,
            "prompt_tokens": turn.prompt_tokens,
            "completion_tokens": turn.completion_tokens,
        }
        for turn in rollout.turns
    ]
    calls = [
        {
            "name": call.name,
            "arguments": call.arguments,
            "is_error": call.result.is_error,
            "seconds": call.result.seconds,
        }
        for call in rollout.calls
    ]
    return turns, calls


def portable_messages(messages: Sequence[Message]) -> list[Message]:
    """Messages that JSON can carry: images as data URIs."""
    return [_portable(message) for message in messages]


def _portable(message: Message) -> Message:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_portable_part(part) for part in message["content"]]}


def _portable_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": data_uri(part["image"])}}
