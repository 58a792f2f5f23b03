"""One request as a candidate for a trace in MLflow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from toolwise.agent import Rollout

if TYPE_CHECKING:
    from toolwise.tracking.served import ServedTraces


class TraceSample:
    """Offers what becomes of one request to the traces, where there are any.

    Args:
        traces: takes a sample.
        name: what the endpoint calls the request.
        asked: messages the client sent.
    """

    def __init__(self, traces: ServedTraces | None, name: str, asked: int) -> None:
        self._traces = traces
        self._name = name
        self._asked = asked
        self._started, self._clock = time.time_ns(), time.perf_counter()
        self._rollout: Rollout | None = None

    def progressed(self, rollout: Rollout) -> None:
        """Something has happened in a rollout."""
        self._rollout = rollout

    def answered(self, rollout: Rollout) -> None:
        """A rollout is over."""
        self._offer(rollout, None)

    def failed(self, reason: str) -> None:
        """The request ended without an answer."""
        if self._rollout is not None:
            self._offer(self._rollout, reason)

    def _offer(self, rollout: Rollout, error: str | None) -> None:
        if self._traces is None:
            return
        from toolwise.tracking.served import ServedRequest

        seconds = time.perf_counter() - self._clock
        self._traces.offer(
            ServedRequest(self._name, rollout, self._asked, self._started, seconds, error)
        )
