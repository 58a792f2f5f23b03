"""A reply in pieces: the answer as the model writes it, tool calls as they begin and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol, runtime_checkable

from toolwise.agent import (
    Batch,
    CallRecord,
    Engine,
    ParsedCall,
    Rollout,
    Sampling,
    TokenRecord,
    Turn,
    parse_turn,
)
from toolwise.data import Message
from toolwise.serving.answers import AnswerReader, answer_text
from toolwise.serving.failures import describe_error
from toolwise.serving.openai_api import ChatRequest, Reply, call_field, server_sent

Happened = str | Turn | CallRecord
"""A piece of the answer, a turn that ended, a call that ended."""
Listener = Callable[[int, Happened], None]
"""Told the choice and what happened in it."""
OnText = Callable[[int, str], None]
"""Told the conversation and what the model has written since."""

_KEEP_ALIVE_SECONDS = 15.0


@runtime_checkable
class StreamingBatch(Batch, Protocol):
    """A batch that tells what is written while it is."""

    async def stream(
        self, indices: Sequence[int], sampling: Sampling, on_text: OnText
    ) -> list[Turn]:
        """As `generate`; `on_text` gets the conversation's index and each piece of its turn."""
        ...


class ListenedEngine:
    """An engine whose one conversation is listened to, where it can be.

    Args:
        engine: the model.
        on_answer: gets each piece of an answer, as soon as it is known to belong to one.
    """

    def __init__(self, engine: Engine, on_answer: Callable[[str], None]) -> None:
        self.name = engine.name
        self.max_result_chars = engine.max_result_chars
        self._engine = engine
        self._on_answer = on_answer

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> Batch:
        """Open a batch of one conversation."""
        batch = self._engine.start(conversations, tools)
        if not isinstance(batch, StreamingBatch):
            return batch
        return _ListenedBatch(batch, self._on_answer)


class _ListenedBatch:
    def __init__(self, batch: StreamingBatch, on_answer: Callable[[str], None]) -> None:
        self._batch = batch
        self._on_answer = on_answer

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        reader = AnswerReader()

        def on_text(_: int, text: str) -> None:
            answer = reader.read(text)
            if answer:
                self._on_answer(answer)

        return await self._batch.stream(indices, sampling, on_text)

    def append(self, index: int, messages: Sequence[Message]) -> None:
        self._batch.append(index, messages)

    def tokens(self, index: int) -> TokenRecord:
        return self._batch.tokens(index)


class AnswerStream:
    """One streamed reply: tool calls as they begin and end, the answer as it is written.

    Args:
        request: what was asked.
        reply: identity of the reply.
        work: given a listener, the answers, one rollout a choice.
    """

    def __init__(
        self,
        request: ChatRequest,
        reply: Reply,
        work: Callable[[Listener], Coroutine[Any, Any, list[Rollout]]],
    ) -> None:
        self._request = request
        self._reply = reply
        self._happened: asyncio.Queue[tuple[int, Happened] | None] = asyncio.Queue()
        self._sent = [""] * request.n
        self._answering = asyncio.ensure_future(work(lambda *what: self._happened.put_nowait(what)))
        self._answering.add_done_callback(lambda _: self._happened.put_nowait(None))
        self._first: Any = None

    async def begin(self) -> None:
        """Wait a while for something to happen: what fails before still has its HTTP status.

        Raises:
            RequestError, BackendError: as `AgentModel.answer`.
        """
        try:
            self._first = await self._next()
        except asyncio.CancelledError:
            await self._stop()
            raise
        if self._first is None:
            self._happened.put_nowait(None)
            await self._answering

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body: server-sent events."""
        try:
            for choice in range(self._request.n):
                role = {"role": "assistant", "content": ""}
                yield server_sent(self._reply.chunk(role, index=choice))
            happened = self._first or await self._next()
            while happened is not None:
                if happened == "idle":
                    yield b": still at it\n\n"
                else:
                    for chunk in self._told(*happened):
                        yield server_sent(chunk)
                happened = await self._next()
            for chunk in self._last(await self._answering):
                yield server_sent(chunk)
        except Exception as error:
            yield server_sent(describe_error(error).body)
        else:
            yield b"data: [DONE]\n\n"
        finally:
            await self._stop()

    async def _next(self) -> Any:
        """What happened next, `idle` where nothing did for a while, None at the end."""
        try:
            async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                return await self._happened.get()
        except TimeoutError:
            return "idle"

    def _told(self, choice: int, happened: Happened) -> list[dict[str, Any]]:
        match happened:
            case str():
                self._sent[choice] += happened
                return [self._reply.chunk({"content": happened}, index=choice)]
            case CallRecord():
                call = {"call": call_field(happened)}
                return [self._reply.chunk({}, index=choice, toolwise=call)]
            case Turn():
                asked = parse_turn(happened.text).calls if self._request.tools_offered else ()
                if asked and self._sent[choice]:  # an answer the model went on from
                    self._sent[choice] = ""
                    return [self._reply.chunk({"content": "\n"}, index=choice)] + [
                        self._asked(choice, call) for call in asked
                    ]
                return [self._asked(choice, call) for call in asked]

    def _asked(self, choice: int, call: ParsedCall) -> dict[str, Any]:
        asked = {"calling": {"name": call.name, "arguments": call.arguments}}
        return self._reply.chunk({}, index=choice, toolwise=asked)

    def _last(self, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
        """What has not been sent yet of the answers, the ends, the usage where it is asked for."""
        chunks = []
        for choice, rollout in enumerate(rollouts):
            answer, sent = answer_text(rollout), self._sent[choice]
            if answer != sent and answer.startswith(sent):
                chunks.append(self._reply.chunk({"content": answer[len(sent) :]}, index=choice))
            chunks.append(self._reply.end(choice, rollout, self._request.tools_offered))
        if self._request.stream_options.include_usage:
            chunks.append(self._reply.usage_chunk(rollouts))
        return chunks

    async def _stop(self) -> None:
        if self._answering.cancel():
            await asyncio.gather(self._answering, return_exceptions=True)
