"""What becomes of a request is offered to the traces once, failed ones as far as they came."""

from __future__ import annotations

from typing import Any

from toolwise.agent import Rollout
from toolwise.data import Task
from toolwise.serving.trace_sample import TraceSample

ROLLOUT = Rollout(Task("t", "t", "t", "?", ()), [{"role": "user", "content": "?"}])


class Traces:
    """Takes everything."""

    def __init__(self) -> None:
        self.offered: list[Any] = []

    def offer(self, request: Any) -> None:
        self.offered.append(request)


def sample() -> tuple[Any, TraceSample]:
    traces: Any = Traces()
    return traces, TraceSample(traces, "chatcmpl-1", asked=1)


def test_an_answer_is_offered_under_its_id() -> None:
    traces, request = sample()
    request.progressed(ROLLOUT)
    request.answered(ROLLOUT)
    [offered] = traces.offered
    assert (offered.request_id, offered.rollout, offered.asked) == ("chatcmpl-1", ROLLOUT, 1)
    assert offered.error is None
    assert offered.seconds >= 0


def test_a_failure_is_offered_with_what_was_done_and_why() -> None:
    traces, request = sample()
    request.progressed(ROLLOUT)
    request.failed("the model is gone")
    [offered] = traces.offered
    assert (offered.rollout, offered.error) == (ROLLOUT, "the model is gone")


def test_what_failed_before_anything_was_done_leaves_no_trace() -> None:
    traces, request = sample()
    request.failed("the model is gone")
    assert traces.offered == []
