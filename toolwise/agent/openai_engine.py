"""An engine over any OpenAI-compatible server (vLLM, a KServe predictor)."""

from __future__ import annotations

import functools
import io
import ipaddress
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakValueDictionary

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolwise.agent.concurrently import concurrently
from toolwise.agent.engine import Sampling, TokenRecord, Turn
from toolwise.agent.openai_stream import MAX_BYTES, StreamedCompletion, read_stream
from toolwise.data import Message, data_uri
from toolwise.data.protocol import parse_turn
from toolwise.errors import BackendError, InputError
from toolwise.json_encoding import encode_json
from toolwise.retry import TransientFault, request_endpoint, retry_after

CONCURRENCY = 32
"""Requests in flight per batch; the server batches them itself."""
MAX_RESULT_CHARS = 32_768
"""Of one tool result: a server does not say how long its model's context is."""
LARGE_BODY = 2**20
"""Bytes of a request that are not sent in one go."""

_REFUSED = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
# OpenAI's error code, and how vLLM and SGLang word it.
_TOO_LONG = re.compile(r"context_length_exceeded|context length|maximum model length")


class ServedModel(BaseModel):
    """Where a model is served.

    Args:
        base_url: up to and including `/v1`.
        model: name the server knows it by.
        api_key_env: environment variable that holds the key, for servers that ask for one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field(pattern=r"^https?://")
    model: str = Field(min_length=1)
    api_key_env: str = "OPENAI_API_KEY"

    def __str__(self) -> str:
        return f"{self.model} at {self.base_url}"

    def engine(self, timeout: float | None = 300.0) -> OpenAIEngine:
        """An engine over it; arguments as `OpenAIEngine`."""
        key = os.environ.get(self.api_key_env)
        return OpenAIEngine(self.base_url, self.model, key, timeout)


class OpenAIEngine:
    """A model behind `/chat/completions`.

    Tools are offered natively (`tools`); calls the server has parsed come back as protocol text,
    so that the loop reads every engine alike. Of a sampled batch, conversation i gets `seed + i`.
    A conversation that has outgrown the model's context through the model's own turns and calls
    ends like a turn that was cut (`length`).

    Args:
        base_url: up to and including `/v1`.
        model: name the server knows it by.
        api_key: for servers that ask for one.
        timeout: seconds one request may take (None: as long as the caller lets it); failures are
            retried with backoff, and `Retry-After` is honoured.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        timeout: float | None = 300.0,
    ) -> None:
        self.name = f"{model} at {base_url}"
        self.max_result_chars = MAX_RESULT_CHARS
        self.model = model
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._kept: aiohttp.ClientSession | None = None

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> OpenAIBatch:
        """Open a batch; nothing is sent before the first turn."""
        return OpenAIBatch(self, conversations, tools)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep connections from one generation to the next; for use in this event loop only."""
        async with self._session() as session:
            self._kept = session
            try:
                yield
            finally:
                self._kept = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[aiohttp.ClientSession]:
        """What is kept, or connections for one generation: they must not outlive its event loop."""
        if self._kept is not None:
            yield self._kept
        else:
            async with self._session() as session:
                yield session

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            connector=aiohttp.TCPConnector(limit=0),  # `CONCURRENCY`, or the caller, is the limit
            proxy=_proxy(self._url),
        )

    async def complete(
        self,
        session: aiohttp.ClientSession,
        body: dict[str, Any],
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """One completion, with retries.

        Args:
            session: connections to use.
            body: the request.
            on_text: gets the text as the server writes it; once it got some, a failure is final.

        Raises:
            BackendError: the server could not be reached, kept failing, or makes no sense.
            InputError: it refuses the conversation (too long, an image it cannot read).
        """
        if on_text:
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        content = encode_json(body)
        return await request_endpoint(lambda: self._request(session, content, on_text), self.name)

    async def _request(
        self,
        session: aiohttp.ClientSession,
        content: bytes,
        on_text: Callable[[str], None] | None,
    ) -> Completion:
        # aiohttp reads a file object in a thread: worth it for a body that would block the loop.
        data = content if len(content) < LARGE_BODY else io.BytesIO(content)
        told = False

        def tell(text: str) -> None:
            nonlocal told
            told = True
            if on_text:
                on_text(text)

        try:
            async with session.post(self._url, data=data) as response:
                # A server that does not stream answers whole.
                if on_text and response.content_type == "text/event-stream":
                    return _gathered(await read_stream(response.content, tell, self.name))
                reply = await self._read(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            fault = _fault(error)
            if told:
                raise BackendError(f"{self.name} failed amid its answer: {fault}") from error
            raise TransientFault(fault) from error
        if response.status == HTTPStatus.OK:
            try:
                return Completion.model_validate_json(reply)
            except ValidationError as error:
                raise BackendError(
                    f"{self.name} answers with something else than a chat completion: {error}"
                ) from None
        fault = f"HTTP {response.status}: {_error_message(reply)}"
        if response.status in _REFUSED:
            raise InputError(f"{self.name} refuses the conversation: {fault}")
        if response.status in _PASSING or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise TransientFault(fault, retry_after(response.headers.get("Retry-After")))
        raise BackendError(f"{self.name} failed: {fault}")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        reply = bytearray()
        async for piece in response.content.iter_any():
            reply += piece
            if len(reply) > MAX_BYTES:
                raise BackendError(f"{self.name} answers with more than {MAX_BYTES >> 20} MiB")
        return bytes(reply)


class _Function(BaseModel):
    name: str
    arguments: str | None = None


class _ToolCall(BaseModel):
    type: str = "function"
    function: _Function | None = None


class Reply(BaseModel):
    """The assistant's message of a completion."""

    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: Reply
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(BaseModel):
    """What Toolwise reads of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def _gathered(streamed: StreamedCompletion) -> Completion:
    calls = [_ToolCall(function=_Function(name=n, arguments=a)) for n, a in streamed.calls]
    message = Reply(content=streamed.content, tool_calls=calls)
    return Completion(
        choices=[_Choice(message=message, finish_reason=streamed.finish_reason)],
        usage=_Usage(
            prompt_tokens=streamed.prompt_tokens, completion_tokens=streamed.completion_tokens
        ),
    )


class OpenAIBatch:
    """Conversations kept as OpenAI messages and sent whole each turn."""

    def __init__(
        self,
        engine: OpenAIEngine,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence[dict[str, Any]],
    ) -> None:
        self._engine = engine
        self._conversations = [[_to_openai(m) for m in messages] for messages in conversations]
        self._calls = [0] * len(conversations)
        self._turns = [0] * len(conversations)
        self._tools = list(tools)

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        """One turn each, sent concurrently.

        Raises:
            BackendError: the server could not be reached or kept failing.
            InputError: the server finds the conversation itself unacceptable (too long, …).
        """
        return await self._generate(indices, sampling, None)

    async def stream(
        self, indices: Sequence[int], sampling: Sampling, on_text: Callable[[int, str], None]
    ) -> list[Turn]:
        """As `generate`; `on_text` gets each conversation's index and text as it is written."""
        return await self._generate(indices, sampling, on_text)

    async def _generate(
        self,
        indices: Sequence[int],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None,
    ) -> list[Turn]:
        async with self._engine.connection() as session:

            async def one(index: int) -> Turn:
                tell = functools.partial(on_text, index) if on_text else None
                return await self._turn(session, index, sampling, tell)

            return await concurrently(one, indices, CONCURRENCY)

    def append(self, index: int, messages: Sequence[Message]) -> None:
        """Add tool results to one conversation."""
        self._conversations[index] += [_to_openai(message) for message in messages]

    def tokens(self, index: int) -> TokenRecord:
        """Always raises `InputError`: the server keeps its tokens to itself."""
        raise InputError(
            f"{self._engine.name} gives no token ids; train with the in-process engine"
        )

    async def _turn(
        self,
        session: aiohttp.ClientSession,
        index: int,
        sampling: Sampling,
        on_text: Callable[[str], None] | None,
    ) -> Turn:
        conversation = self._conversations[index]
        body = {
            "model": self._engine.model,
            "messages": conversation,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if self._tools:
            body["tools"] = self._tools
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed + index
        started = time.perf_counter()
        try:
            reply = await self._engine.complete(session, body, on_text)
        except InputError as refusal:
            if self._turns[index] == 0 or not _TOO_LONG.search(str(refusal)):
                raise
            return Turn("", "length", 0, 0, seconds=time.perf_counter() - started)
        seconds = time.perf_counter() - started
        self._turns[index] += 1
        choice = reply.choices[0]
        text = protocol_text(choice.message)
        conversation.append(self._assistant(index, text))
        return Turn(
            text=text,
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
            completion_tokens=reply.usage.completion_tokens if reply.usage else 0,
            seconds=seconds,
        )

    def _assistant(self, index: int, text: str) -> dict[str, Any]:
        """The turn as history, its calls numbered as the loop numbers their results."""
        parsed = parse_turn(text)
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if parsed.calls:
            first = self._calls[index]
            self._calls[index] += len(parsed.calls)
            message["tool_calls"] = [
                _call(f"call_{first + i}", call.name or "malformed", call.arguments)
                for i, call in enumerate(parsed.calls)
            ]
        return message


def _fault(error: Exception) -> str:
    """In words; without the address, which `OpenAIEngine.name` has."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        reason = os.strerror(number) if number > 0 else error.os_error.strerror
        return f"cannot connect: {reason}"
    return f"{type(error).__name__}: {error}"


def is_loopback(url: str) -> bool:
    """Whether it is of this machine itself, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _proxy(url: str) -> str | None:
    """The proxy the environment names for `url` (`https_proxy`, `no_proxy`, …).

    aiohttp's own `trust_env` looks for one, and for a netrc file, at every request.
    """
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


def _error_message(reply: bytes) -> str:
    """The message of OpenAI's error form; otherwise the beginning of whatever came."""
    try:
        return orjson.loads(reply)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return reply[:500].decode(errors="replace")


def protocol_text(message: Reply) -> str:
    """The reply as the model wrote it, whether or not the server has parsed the calls out."""
    calls = []
    for call in message.tool_calls or []:
        if call.type != "function" or call.function is None:
            continue
        # Arguments stay as sent, so that a malformed call is seen as one; JSON may escape "/".
        arguments = (call.function.arguments or "{}").replace("</tool_call>", "<\\/tool_call>")
        name = json.dumps(call.function.name, ensure_ascii=False)
        calls.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(part for part in (message.content, *calls) if part)


def _to_openai(message: Message) -> Any:
    sent = dict(message)
    if isinstance(message.get("content"), list | tuple):
        sent["content"] = [_part(part) for part in message["content"]]
    if message.get("tool_calls"):
        sent["tool_calls"] = [
            _call(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message["tool_calls"]
        ]
    return sent


class _Uri(str):
    """A string that can be referred to weakly."""

    __slots__ = ("__weakref__",)


_URIS: WeakValueDictionary[bytes, _Uri] = WeakValueDictionary()
"""Data URIs of the images that some conversation holds: many may hold the same ones."""


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    image: bytes = part["image"]
    uri = _URIS.get(image)
    if uri is None:
        uri = _URIS[image] = _Uri(data_uri(image))
    return {"type": "image_url", "image_url": {"url": uri}}


def _call(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    written = json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}}
