"""What a request passes before anything answers it: its key, its size, its place in the queue.

An ASGI application around the server's own, so that it holds for every protocol the server speaks.
A client that hangs up cancels what is done for it, tool calls included.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolwise.json_encoding import encode_json
from toolwise.serving.admission import Admission, Bodies, Body, refused
from toolwise.serving.failures import Failed, describe_error
from toolwise.serving.keys import ANYONE, ApiKey, KeyFile
from toolwise.serving.openai_api import MAX_IMAGES, RequestError
from toolwise.serving.settings import SENDING_SECONDS, ServingSettings
from toolwise.serving.telemetry import REFUSED

MAX_BODY_BYTES = 64 * 2**20
CHARACTER_BYTES = 6
"""Of a character in a body, which JSON may write as an escape like `\\u00e9`."""
STRUCTURE_BYTES = 2**16
"""Of a body, beside its characters and images."""
ALL_BODIES_BYTES = 512 * 2**20
"""What the bodies of all requests under way may hold together, those that wait included."""
BODY_SECONDS = 30.0
"""How long a client may take to send its request."""
MAX_INSTANCES = 32
"""Chat requests in one request of KServe's v1 protocol."""

_log = logging.getLogger("toolwise.serving")

_CHAT = ("/v1/chat/completions", "/openai/v1/chat/completions")
# What else a model answers to; KServe's other POST routes load and unload models.
_PREDICT = re.compile(r"/v1/models/[^/]+:predict|/v2/models/[^/]+/infer")
_LISTED = ("/v1/models", "/openai/v1/models")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that was let in.

    Args:
        caller: name of its key.
        deadline: when it must be answered (monotonic clock).
        id: what replies and traces call it.
        charge: counts further requests that it carries against its key's rate; raises
            `RequestError`, 429, where that is used up, and 400 where it never has so many.
    """

    caller: str
    deadline: float
    id: str
    charge: Callable[[int], None] = lambda _: None

    @classmethod
    def at_once(
        cls, caller: str, seconds: float, charge: Callable[[int], None] = lambda _: None
    ) -> Arrival:
        """A request that comes now and may take so long."""
        return cls(caller, time.monotonic() + seconds, f"chatcmpl-{uuid.uuid4().hex}", charge)


ARRIVAL: ContextVar[Arrival] = ContextVar("arrival")
"""The request being answered, for KServe's protocols, which do not hand it on."""


class Guard:
    """Lets requests in.

    Args:
        app: the model server.
        chat: what answers chat completions.
        admission: places and queue.
        keys: who may ask; None asks nobody for a key.
        seconds: how long a request may take, its wait included.
        bodies_bytes: what the bodies of all requests under way may hold together.
        max_characters: of the text of one request.
    """

    def __init__(
        self,
        app: ASGIApp,
        chat: ASGIApp,
        admission: Admission,
        keys: KeyFile | None,
        seconds: float,
        bodies_bytes: int = ALL_BODIES_BYTES,
        max_characters: int = ServingSettings().max_characters,
    ) -> None:
        self._app = app
        self._chat = chat
        self._admission = admission
        self._keys = keys
        self._seconds = seconds
        self._bodies = Bodies(bodies_bytes)
        self._text_bytes = CHARACTER_BYTES * max_characters + STRUCTURE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["method"] == "POST":
                await self._answer(scope, receive, send)
                return
            if scope["path"] in _LISTED:
                self._caller(scope)
            if scope["path"] in _CHAT:
                raise RequestError(f"{scope['path']} is asked with POST", status=405)
        except RequestError as error:
            await _refuse(send, describe_error(error))
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = self._caller(scope)
        charge = partial(self._admission.charge, caller)
        arrival = Arrival.at_once(caller.name, self._seconds, charge)
        if scope["path"] not in _CHAT and not _PREDICT.fullmatch(scope["path"]):
            raise RequestError(f"there is no POST {scope['path']} here", status=404)
        # Before the body is read: whoever is turned away must not fill the memory first.
        with self._admission.admit(caller), self._bodies.of(caller) as held:
            body = await _read_body(scope, receive, held)
            self._check_text(body)
            answering = asyncio.create_task(
                self._place_and_answer(scope, caller, body, arrival, send)
            )
            leaving = asyncio.create_task(_until_gone(receive))
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
            finally:
                leaving.cancel()
                if answering.cancel():
                    await asyncio.gather(answering, return_exceptions=True)

    async def _place_and_answer(
        self, scope: Scope, caller: ApiKey, body: bytes, arrival: Arrival, send: Send
    ) -> None:
        ARRIVAL.set(arrival)
        place = self._admission.place(caller)
        try:
            async with asyncio.timeout(arrival.deadline - time.monotonic()):
                await place.__aenter__()
        except TimeoutError:
            message = f"no place became free within {self._seconds:.0f} s"
            raise refused(message, "queue_timeout", 1) from None
        try:
            app = self._chat if scope["path"] in _CHAT else self._app
            # The answer has its own deadline. This one is for a client that does not read it.
            left = arrival.deadline - time.monotonic()
            async with asyncio.timeout(left + SENDING_SECONDS):
                await app(scope, _replayed(body), send)
        except TimeoutError:
            _log.warning("the client %s does not read its answer", arrival.caller)
        finally:
            await place.__aexit__(None, None, None)

    def _check_text(self, body: bytes) -> None:
        """Refuse more text than a request may have, before the time it takes to read it as JSON."""
        size, at = len(body), 0
        for _ in range(MAX_IMAGES * MAX_INSTANCES):
            if size <= self._text_bytes:
                return
            start = body.find(b'"data:', at)
            at = body.find(b'"', start + 1)
            if start < 0 or at < 0:
                break
            size -= at - start
        message = f"without images, a request has at most {self._text_bytes >> 10} KiB"
        raise RequestError(message, "messages", 413)

    def _caller(self, scope: Scope) -> ApiKey:
        if self._keys is None:
            return ANYONE
        try:
            return self._keys.caller(_header(scope, b"authorization"))
        except RequestError as refused:
            REFUSED.labels(refused.code).inc()
            raise


def _header(scope: Scope, name: bytes) -> str | None:
    found = [value for key, value in scope["headers"] if key == name]
    return found[0].decode("latin-1") if found else None


async def _read_body(scope: Scope, receive: Receive, held: Body) -> bytes:
    """The body; one that says it is too large, or does not say how large, is not read at all."""
    length = _header(scope, b"content-length") or ""
    if not length.isdecimal():
        raise RequestError("the request needs a content-length", status=411)
    if int(length) > MAX_BODY_BYTES:
        raise RequestError(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", status=413)
    held.announce(int(length))
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestError("the client closed the connection", status=499)
                # What has come counts, not what was announced: to announce costs a client nothing.
                held.grow(len(message.get("body", b"")))
                chunks.append(message.get("body", b""))
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        message = f"the body did not arrive within {BODY_SECONDS:.0f} s"
        raise RequestError(message, status=408) from None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replayed(body: bytes) -> Receive:
    """The body once more; after it the client is never gone, for the guard watches that."""
    unread = True

    async def receive() -> Message:
        nonlocal unread
        if not unread:
            await _forever()
        unread = False
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _forever() -> NoReturn:
    await asyncio.Future()
    raise AssertionError


async def _refuse(send: Send, failed: Failed) -> None:
    body = encode_json(failed.body)
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in failed.headers.items()),
    ]
    start: dict[str, Any] = {"status": failed.status, "headers": headers}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": body})
