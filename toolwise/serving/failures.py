"""How a request that failed is told: status, headers and OpenAI's error object."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError
from starlette.exceptions import HTTPException

from toolwise.errors import BackendError, InputError
from toolwise.serving.openai_api import (
    OutOfTime,
    RequestError,
    error_body,
    validation_error,
)

_log = logging.getLogger("toolwise.serving")

_ADDRESS = re.compile(r"(?: at)? https?://[^\s,;)]+")
"""Where a server of ours is, as an error names it: for the log, not for the client."""


class Failed(NamedTuple):
    """A failed request, as HTTP says it."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = {}


def describe_error(error: BaseException) -> Failed:
    """What the client is told; what is not the client's fault is logged."""
    match error:
        case ValidationError():
            return describe_error(validation_error(error.errors(include_url=False)))
        case RequestError():
            return _refused(error)
        case InputError():
            return Failed(400, error_body(_without_addresses(error), "invalid_request_error"))
        case BackendError():
            _log.error("backend failure: %s", error)
            body = error_body(_without_addresses(error), "server_error", code="backend_unavailable")
            # OpenAI's clients would ask twice more, for as long each time.
            late = isinstance(error, OutOfTime)
            return Failed(503, body, {"x-should-retry": "false"} if late else {})
        case OSError():  # a full disk, no more file descriptors: it may pass
            _log.error("the machine fails", exc_info=error)
            message = f"the server's machine fails: {error.strerror or type(error).__name__}"
            return Failed(503, error_body(message, "server_error", code="backend_unavailable"))
        case HTTPException():
            kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
            return Failed(error.status_code, error_body(str(error.detail), kind))
        case _:
            _log.error("unexpected failure", exc_info=error)
            message = "internal error; the server's log has it"
            return Failed(500, error_body(message, "server_error"))


def _without_addresses(error: Exception) -> str:
    return _ADDRESS.sub("", str(error))


def _refused(error: RequestError) -> Failed:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        error.status, "invalid_request_error"
    )
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status == 405:
        headers["allow"] = "POST"
    return Failed(error.status, error_body(str(error), kind, error.param, error.code), headers)
