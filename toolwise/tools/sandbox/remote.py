"""Sandboxes behind a server (`toolwise.tools.server`), such as a gVisor pod in the cluster."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from toolwise.errors import BackendError, InputError
from toolwise.tools.base import ToolResult
from toolwise.tools.sandbox.contract import Isolation

M = TypeVar("M", bound=BaseModel)

ATTEMPTS = 5
CALL_SECONDS = 120.0
"""How long a call may take with its wait for a free place; the server bounds the code itself."""


class Health(BaseModel):
    """What a server says about itself."""

    isolation: Isolation
    sessions: int


class NewSession(BaseModel):
    """Images (base64) a session starts with."""

    images: list[str] = []


class SessionId(BaseModel):
    """The name of a session; whoever knows it can use it."""

    id: str


class Code(BaseModel):
    """One call."""

    code: str


class CallResult(BaseModel):
    """A `ToolResult`, its images in base64."""

    text: str
    images: list[str]
    is_error: bool
    seconds: float


class _Unavailable(Exception):
    """The server can't take the request now; another try may do."""


class RemoteSandbox:
    """Sessions on a sandbox server.

    Args:
        url: where the server is.
        lowest: weakest isolation accepted.

    Raises:
        BackendError: the server does not answer, or isolates less than `lowest`.
    """

    concurrency = 32

    def __init__(self, url: str, lowest: Isolation) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self._url,
            timeout=httpx.Timeout(CALL_SECONDS, connect=5.0),
            limits=httpx.Limits(max_connections=self.concurrency),
        )
        # Closing a session must not wait for the network.
        self._closing = ThreadPoolExecutor(1, thread_name_prefix="sandbox-closing")
        self.isolation = self.parsed(Health, self.request("GET", "/health")).isolation
        if not self.isolation.satisfies(lowest):
            self.close()
            raise BackendError(
                f"the sandbox server {self._url} isolates by {self.isolation.value!r}; this run "
                f"accepts nothing weaker than {lowest.value!r}"
            )

    def open(self, images: Sequence[bytes]) -> RemoteSession:
        return RemoteSession(self, images)

    def close(self) -> None:
        self._closing.shutdown()
        self._http.close()

    def close_session(self, path: str) -> None:
        """Delete a session in the background; see `delete_session`."""
        with contextlib.suppress(RuntimeError):  # the sandbox is closed
            self._closing.submit(self.delete_session, path)

    def delete_session(self, path: str) -> None:
        """Delete a session; one that can't be reached expires on the server."""
        with contextlib.suppress(BackendError, InputError):
            self.request_once("DELETE", path)

    def parsed(self, model: type[M], answer: Any) -> M:
        """An answer of the server, checked; raises `BackendError` where it is something else."""
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise BackendError(f"{self._url} is no sandbox server: {error}") from None

    def request(self, method: str, path: str, body: BaseModel | None = None) -> Any:
        """One request, repeated with growing pauses while the server is not available.

        Raises:
            BackendError: it stays so, or the server fails.
            InputError: the server says the request is wrong.
        """
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential_jitter(initial=0.1, max=5.0),
            retry=retry_if_exception_type(_Unavailable),
        )
        try:
            return retrying(self._request_once, method, path, body)
        except RetryError as error:
            reason = error.last_attempt.exception()
            raise BackendError(f"the sandbox server {self._url}: {reason}") from None

    def request_once(self, method: str, path: str, body: BaseModel | None = None) -> Any:
        """One request that must not be repeated; raises as `request` does."""
        try:
            return self._request_once(method, path, body)
        except _Unavailable as error:
            raise BackendError(f"the sandbox server {self._url}: {error}") from None

    def _request_once(self, method: str, path: str, body: BaseModel | None) -> Any:
        if self._http.is_closed:
            raise BackendError(f"the sandbox server {self._url}: its client is closed")
        try:
            response = self._http.request(method, path, json=body and body.model_dump())
        except httpx.TransportError as error:
            raise _Unavailable(f"{type(error).__name__}: {error}") from error
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise _Unavailable(_detail(response))
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            raise InputError(_detail(response))
        if not response.is_success:
            raise BackendError(f"the sandbox server {self._url}: {_detail(response)}")
        try:
            return response.json() if response.content else None
        except ValueError:
            raise BackendError(f"{self._url} is no sandbox server") from None


class RemoteSession:
    """One trajectory's python on a server, opened by its first call."""

    def __init__(self, sandbox: RemoteSandbox, images: Sequence[bytes]) -> None:
        self._sandbox = sandbox
        self._images = list(images)
        self._path: str | None = None
        self._closed = False
        self._lock = threading.Lock()

    def call(self, code: str) -> ToolResult:
        """Run code.

        Raises:
            BackendError: the server fails or has lost the session, or the session was closed. A
                call is sent once: where its answer is lost, its code may be why.
            InputError: an image of the task can't be decoded.
        """
        with self._lock:
            return self._call(self._path or self._create(), code)

    def close(self) -> None:
        self._closed = True
        path, self._path = self._path, None
        if path is not None:
            self._sandbox.close_session(path)

    def _create(self) -> str:
        images = [base64.b64encode(image).decode() for image in self._images]
        answer = self._sandbox.request("POST", "/sessions", NewSession(images=images))
        path = f"/sessions/{self._sandbox.parsed(SessionId, answer).id}"
        self._path = path
        if self._closed:
            # Whoever closed it meanwhile knew no path to delete.
            self._sandbox.delete_session(path)
            raise BackendError("the session was closed while it was opened")
        return path

    def _call(self, path: str, code: str) -> ToolResult:
        answer = self._sandbox.request_once("POST", f"{path}/calls", Code(code=code))
        result = self._sandbox.parsed(CallResult, answer)
        images = tuple(base64.b64decode(image) for image in result.images)
        return ToolResult(result.text, images, result.is_error, result.seconds)


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}"
