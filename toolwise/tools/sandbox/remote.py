"""Sandboxes behind servers (`toolwise.tools.server`), such as the gVisor pods of a cluster.

A name may have several addresses, a server at each: sessions are spread over them.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type
from tenacity.wait import wait_exponential_jitter

from toolwise.errors import BackendError, InputError
from toolwise.tools.base import ToolResult
from toolwise.tools.sandbox.contract import Isolation

A = TypeVar("A")
M = TypeVar("M", bound=BaseModel)

ATTEMPTS = 5
FULL_SECONDS = 60.0
"""How long a new session may wait for others to end where there is room for no more."""

LOOK_UP_SECONDS = 10.0
"""How long the addresses of a name are taken to be its own, unless none of them will do."""

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
    """A server can't take the request now; another try may do, or another server."""


class _Full(_Unavailable):
    """It is there, and could once others have ended."""


class RemoteSandbox:
    """Sessions on the sandbox servers of one name.

    A session stays at the address that made it. Which that is goes by turns; one that is full or
    away is passed over.

    Args:
        url: where the servers are.
        lowest: weakest isolation accepted.

    Raises:
        BackendError: none answers, or one isolates less than `lowest`.
    """

    concurrency = 32

    def __init__(self, url: str, lowest: Isolation) -> None:
        self._url = url.rstrip("/")
        self._lowest = lowest
        self._name = httpx.URL(self._url)
        # A proxy looks names up itself, and is told which to leave out by name, not by address.
        proxies = getproxies().keys() & {self._name.scheme, "all"}
        self._proxied = bool(proxies) and not proxy_bypass(self._name.host)
        self._http = httpx.Client(
            headers={"Host": self._name.netloc.decode()},
            timeout=httpx.Timeout(CALL_SECONDS, connect=5.0),
            limits=httpx.Limits(max_connections=self.concurrency),
            mounts=None if self._proxied else {"http://": None, "https://": None},
        )
        self._turn = itertools.count(secrets.randbelow(1 << 16))  # each client's own
        self._hosts: list[str] = []
        self._look_up_at = 0.0
        self._accepted: dict[str, Isolation] = {}
        # Closing a session must not wait for the network.
        self._closing = ThreadPoolExecutor(1, thread_name_prefix="sandbox-closing")
        try:
            self.isolation = self._anywhere(self._accept)
        except BaseException:
            self.close()
            raise

    def open(self, images: Sequence[bytes]) -> RemoteSession:
        return RemoteSession(self, images)

    def close(self) -> None:
        self._closing.shutdown()
        self._http.close()

    def new_session(self, body: NewSession) -> str:
        """Where a new session is, which may have waited for room.

        Raises:
            BackendError: there is no room, no server answers, or one fails.
            InputError: a server says the request is wrong.
        """

        def make(address: str) -> str:
            self._accept(address)
            answer = self._request_once("POST", f"{address}/sessions", body)
            return f"{address}/sessions/{self.parsed(SessionId, answer).id}"

        return self._anywhere(make)

    def close_session(self, url: str) -> None:
        """Delete a session in the background; see `delete_session`."""
        with contextlib.suppress(RuntimeError):  # the sandbox is closed
            self._closing.submit(self.delete_session, url)

    def delete_session(self, url: str) -> None:
        """Delete a session; one that can't be reached expires on the server."""
        with contextlib.suppress(BackendError, InputError):
            self.request_once("DELETE", url)

    def parsed(self, model: type[M], answer: Any) -> M:
        """An answer of the server, checked; raises `BackendError` where it is something else."""
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise BackendError(f"{self._url} is no sandbox server: {error}") from None

    def request_once(self, method: str, url: str, body: BaseModel | None = None) -> Any:
        """One request that must not be repeated; raises as `new_session` does."""
        try:
            return self._request_once(method, url, body)
        except _Unavailable as error:
            raise BackendError(f"the sandbox server {self._url}: {error}") from None

    def _anywhere(self, ask: Callable[[str], A]) -> A:
        """What the first address that can says; all are asked again while none can."""
        retrying = Retrying(
            stop=_given_up,
            wait=wait_exponential_jitter(initial=0.1, max=5.0),
            retry=retry_if_exception_type(_Unavailable),
        )
        try:
            return retrying(lambda: self._ask_in_turn(ask))
        except RetryError as error:
            reason = error.last_attempt.exception()
            raise BackendError(f"the sandbox server {self._url}: {reason}") from None

    def _ask_in_turn(self, ask: Callable[[str], A]) -> A:
        passed_over: list[_Unavailable] = []
        for address in self._addresses():
            try:
                return ask(address)
            except _Unavailable as error:
                passed_over.append(error)
        self._look_up_at = 0.0
        full = (error for error in passed_over if isinstance(error, _Full))
        raise next(full, passed_over[0])

    def _addresses(self) -> list[str]:
        """The addresses of the name, as URLs, by turns another one first."""
        if self._proxied:
            return [self._url]
        if time.monotonic() >= self._look_up_at:
            self._hosts = self._looked_up()
            self._look_up_at = time.monotonic() + LOOK_UP_SECONDS
        hosts = self._hosts
        first = next(self._turn) % len(hosts)
        turns = hosts[first:] + hosts[:first]
        return [str(self._name.copy_with(host=host)).rstrip("/") for host in turns]

    def _looked_up(self) -> list[str]:
        host = self._name.raw_host.decode()
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _Unavailable(f"{host}: {error}") from error
        return sorted({str(address[0]) for *_, address in found})

    def _accept(self, address: str) -> Isolation:
        """What the server at an address isolates by, asked once; refused where it is too weak."""
        if address not in self._accepted:
            answer = self._request_once("GET", f"{address}/health", None)
            level = self.parsed(Health, answer).isolation
            if not level.satisfies(self._lowest):
                raise BackendError(
                    f"the sandbox server {self._url} isolates by {level.value!r}; this run "
                    f"accepts nothing weaker than {self._lowest.value!r}"
                )
            self._accepted[address] = level
        return self._accepted[address]

    def _request_once(self, method: str, url: str, body: BaseModel | None) -> Any:
        if self._http.is_closed:
            raise BackendError(f"the sandbox server {self._url}: its client is closed")
        try:
            response = self._http.request(
                method,
                url,
                json=body and body.model_dump(),
                extensions={"sni_hostname": self._name.raw_host.decode()},
            )
        except httpx.TransportError as error:
            raise _Unavailable(f"{type(error).__name__}: {error}") from error
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise _Full(_detail(response))
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
        self._url: str | None = None
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
            return self._call(self._url or self._create(), code)

    def close(self) -> None:
        self._closed = True
        url, self._url = self._url, None
        if url is not None:
            self._sandbox.close_session(url)

    def _create(self) -> str:
        images = [base64.b64encode(image).decode() for image in self._images]
        url = self._url = self._sandbox.new_session(NewSession(images=images))
        if self._closed:
            # Whoever closed it meanwhile knew nothing to delete.
            self._sandbox.delete_session(url)
            raise BackendError("the session was closed while it was opened")
        return url

    def _call(self, url: str, code: str) -> ToolResult:
        answer = self._sandbox.request_once("POST", f"{url}/calls", Code(code=code))
        result = self._sandbox.parsed(CallResult, answer)
        images = tuple(base64.b64decode(image) for image in result.images)
        return ToolResult(result.text, images, result.is_error, result.seconds)


def _given_up(state: RetryCallState) -> bool:
    """Whether to wait no longer: for room as long as it may take, for a server a few tries."""
    if state.outcome is not None and isinstance(state.outcome.exception(), _Full):
        return (state.seconds_since_start or 0.0) >= FULL_SECONDS
    return state.attempt_number >= ATTEMPTS


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}"
