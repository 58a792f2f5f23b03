"""Bounded retries for the endpoints a step depends on (S3, the Hub, a judge)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tenacity

from toolwise.errors import BackendError

ATTEMPTS = 5
FIRST_WAIT = 0.5
LONGEST_WAIT = 8.0

T = TypeVar("T")


def call_endpoint(
    call: Callable[[], T], endpoint: str, transient: Callable[[Exception], bool]
) -> T:
    """`call()`, tried again with growing waits while its failure is `transient`.

    Args:
        call: one request.
        endpoint: what the error names.
        transient: whether another attempt may succeed; other exceptions pass through at once.

    Raises:
        BackendError: the last of `ATTEMPTS` attempts failed too; names endpoint and last error.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, Exception) and transient(error)
        ),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(FIRST_WAIT, max=LONGEST_WAIT),
    )
    try:
        return retrying(call)
    except tenacity.RetryError as gave_up:
        last = gave_up.last_attempt.exception()
        raise BackendError(
            f"{endpoint} failed {ATTEMPTS} times; last error: {type(last).__name__}: {last}"
        ) from last
