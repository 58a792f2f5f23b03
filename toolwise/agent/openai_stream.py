"""A streamed chat completion, put back together while its text is passed on."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable

from aiohttp.http_exceptions import LineTooLong
from pydantic import BaseModel, ValidationError

from toolwise.errors import BackendError
from toolwise.retry import TransientFault

MAX_BYTES = 32 * 2**20
"""Of one reply: a server that goes on for ever is broken."""


class _FunctionPiece(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _CallPiece(BaseModel):
    index: int = 0
    function: _FunctionPiece | None = None


class _Delta(BaseModel):
    content: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


class StreamedCompletion:
    """What a stream has carried so far.

    Attributes:
        content: the text.
        calls: name and arguments (JSON text) of each tool call.
        finish_reason: None until the choice has ended.
        prompt_tokens, completion_tokens: 0 where the server does not tell.
    """

    def __init__(self) -> None:
        self.content = ""
        self.calls: list[tuple[str, str]] = []
        self.finish_reason: str | None = None
        self.prompt_tokens = self.completion_tokens = 0

    def add(self, chunk: _Chunk) -> str:
        """Take a chunk; returns the text it adds."""
        if chunk.usage:
            self.prompt_tokens = chunk.usage.prompt_tokens
            self.completion_tokens = chunk.usage.completion_tokens
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        for piece in choice.delta.tool_calls or []:
            self._add_call(piece)
        text = choice.delta.content or ""
        self.content += text
        return text

    def _add_call(self, piece: _CallPiece) -> None:
        if piece.index == len(self.calls):
            self.calls.append(("", ""))
        if not 0 <= piece.index < len(self.calls):
            raise BackendError(f"the stream adds to a tool call {piece.index} it has not begun")
        name, arguments = self.calls[piece.index]
        if piece.function:
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
        self.calls[piece.index] = name, arguments


async def read_stream(
    lines: AsyncIterable[bytes], on_text: Callable[[str], None], server: str
) -> StreamedCompletion:
    """Read server-sent events to their end.

    Args:
        lines: the body, line by line.
        on_text: gets each piece of the text.
        server: what errors call it.

    Raises:
        TransientFault: the stream broke off before anything was passed on.
        BackendError: it broke off later, carries an error, or is no such stream.
    """
    completion, size = StreamedCompletion(), 0
    try:
        async for line in lines:
            size += len(line)
            if size > MAX_BYTES:
                raise BackendError(f"{server} streams more than {MAX_BYTES >> 20} MiB")
            field, _, data = line.strip().partition(b":")
            if field != b"data" or data.strip() == b"[DONE]":
                continue
            chunk = _Chunk.model_validate_json(data)
            if chunk.error:
                raise BackendError(f"{server} failed amid its answer: {chunk.error}")
            if text := completion.add(chunk):
                on_text(text)
    except ValidationError as error:
        raise BackendError(f"{server} streams something else than chunks: {error}") from None
    except (LineTooLong, ValueError):
        raise BackendError(f"{server} streams something else than events") from None
    if completion.finish_reason is None:
        message = "the stream broke off"
        if completion.content:
            raise BackendError(f"{server}: {message} amid the answer")
        raise TransientFault(message)
    return completion
