"""A sample of the requests an endpoint answers, as MLflow traces.

A thread of its own makes them, so that no answer waits. Where MLflow is away, or requests come
faster than they are traced, traces are dropped and counted: they are a sample, not a record.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolwise.evaluation.rollouts import portable_messages, records

if TYPE_CHECKING:
    from toolwise.agent import Rollout

WAITING = 100
"""Requests that may wait to be traced."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request that is over.

    Args:
        request_id: what the endpoint calls it.
        rollout: what was done for it, as far as it came.
        asked: how many messages the client sent.
        started: nanoseconds since 1970.
        seconds: until it was answered, or failed.
        error: what ended it, where it was not an answer.
    """

    request_id: str
    rollout: Rollout
    asked: int
    started: int
    seconds: float
    error: str | None = None


class ServedTraces:
    """Traces of an endpoint's requests.

    Args:
        experiment: name of the MLflow experiment they go to.
        share: of the requests that are traced, from 0 to 1; failed ones always are.
        uri: MLflow; by default what `MLFLOW_TRACKING_URI` says.
    """

    def __init__(self, experiment: str, share: float, uri: str | None = None) -> None:
        self.dropped = 0
        self._dropping = threading.Lock()
        self._experiment = experiment
        self._share = share
        self._uri = uri
        self._random = random.Random()
        self._waiting: queue.Queue[ServedRequest | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="traces", daemon=True)
        self._thread.start()

    def offer(self, request: ServedRequest) -> None:
        """Trace the request, if it is one of the sample; never waits and never fails."""
        if request.error is None and self._random.random() >= self._share:
            return
        try:
            self._waiting.put_nowait(request)
        except queue.Full:
            self._drop("more requests than can be traced")

    def close(self, seconds: float = 10.0) -> None:
        """Trace what is waiting, for so long at most."""
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _work(self) -> None:
        import mlflow

        from toolwise.tracking.connection import Connection
        from toolwise.tracking.delivery import find_experiment

        connection = Connection(self._uri)
        experiment_id: str | None = None
        while (request := self._waiting.get()) is not None:
            try:
                experiment_id = (
                    experiment_id
                    or find_experiment(
                        connection.client, connection, self._experiment
                    ).experiment_id
                )
                _trace(request, experiment_id)
            except Exception as error:  # whatever MLflow's client raises: the endpoint goes on
                self._drop(error)
        mlflow.flush_trace_async_logging()

    def _drop(self, why: object) -> None:
        with self._dropping:
            self.dropped += 1
            first = self.dropped == 1
        if first:
            _log.warning("a trace was dropped, and so will others be until it is mended: %s", why)


def _trace(request: ServedRequest, experiment_id: str) -> None:
    from toolwise.tracking.traces import TracedRollout, trace

    rollout = request.rollout
    turns, calls = records(rollout)
    tags: Mapping[str, str] = {
        "toolwise.request": request.request_id,
        "tool_calls": str(rollout.tool_calls),
        "stop_reason": rollout.stop_reason,
    }
    traced = TracedRollout(
        name="request",
        messages=portable_messages(rollout.messages),
        asked=request.asked,
        turns=turns,
        calls=calls,
        outputs={"answer": rollout.answer, "stop_reason": rollout.stop_reason},
        tags=tags,
        error=request.error,
        started=request.started,
        seconds=request.seconds,
    )
    trace(traced, experiment_id)
