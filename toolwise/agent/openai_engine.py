"""An engine over any OpenAI-compatible server (vLLM, a KServe predictor)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessage

from toolwise.agent.engine import Sampling, TokenRecord, Turn
from toolwise.agent.protocol import parse_turn
from toolwise.data import Message, data_uri
from toolwise.errors import BackendError, InputError
from toolwise.retry import ATTEMPTS

CONCURRENCY = 32
"""Requests in flight per batch; the server batches them itself."""
MAX_RESULT_CHARS = 32_768
"""Of one tool result: a server does not say how long its model's context is."""


class OpenAIEngine:
    """A model behind `/chat/completions`.

    Tools are offered natively (`tools`); calls the server has parsed come back as protocol text,
    so that the loop reads every engine alike. Of a sampled batch, conversation i gets `seed + i`.

    Args:
        base_url: up to and including `/v1`.
        model: name the server knows it by.
        api_key: for servers that ask for one.
        timeout: seconds one request may take; failures are retried with backoff.
    """

    def __init__(
        self, base_url: str, model: str, api_key: str | None = None, timeout: float = 300.0
    ) -> None:
        self.name = f"{model} at {base_url}"
        self.max_result_chars = MAX_RESULT_CHARS
        self.model = model
        self._connection: dict[str, Any] = {
            "base_url": base_url,
            "api_key": api_key or "none",
            "timeout": timeout,
            "max_retries": ATTEMPTS - 1,
        }

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> OpenAIBatch:
        """Open a batch; nothing is sent before the first turn."""
        return OpenAIBatch(self, conversations, tools)

    def connect(self) -> openai.AsyncOpenAI:
        """A client for one generation: connections must not outlive the event loop they live on."""
        return openai.AsyncOpenAI(**self._connection)


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
        self._tools = list(tools)

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        """One turn each, sent concurrently.

        Raises:
            BackendError: the server could not be reached or kept failing.
            InputError: the server finds the conversation itself unacceptable (too long, …).
        """
        slots = asyncio.Semaphore(CONCURRENCY)
        async with self._engine.connect() as client:

            async def one(index: int) -> Turn:
                async with slots:
                    return await self._turn(client, index, sampling)

            try:
                async with asyncio.TaskGroup() as group:
                    turns = [group.create_task(one(index)) for index in indices]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
        return [turn.result() for turn in turns]

    def append(self, index: int, messages: Sequence[Message]) -> None:
        """Add tool results to one conversation."""
        self._conversations[index] += [_to_openai(message) for message in messages]

    def tokens(self, index: int) -> TokenRecord:
        """Always raises `InputError`: the server keeps its tokens to itself."""
        raise InputError(
            f"{self._engine.name} gives no token ids; train with the in-process engine"
        )

    async def _turn(self, client: openai.AsyncOpenAI, index: int, sampling: Sampling) -> Turn:
        optional = {
            "tools": self._tools,
            "stop": list(sampling.stop),
            "seed": None if sampling.seed is None else sampling.seed + index,
        }
        started = time.perf_counter()
        try:
            reply = await client.chat.completions.create(
                model=self._engine.model,
                messages=self._conversations[index],
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                **{name: value for name, value in optional.items() if value not in (None, [])},
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise InputError(f"{self._engine.name} refuses the conversation: {error}") from error
        except openai.OpenAIError as error:
            last = f"{type(error).__name__}: {error} {error.__cause__ or ''}".strip()
            raise BackendError(f"{self._engine.name} failed; last error: {last}") from error
        seconds = time.perf_counter() - started
        if not reply.choices:
            raise BackendError(f"{self._engine.name} answered without a choice")
        choice = reply.choices[0]
        text = _protocol_text(choice.message)
        self._conversations[index].append(self._assistant(index, text))
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


def _protocol_text(message: ChatCompletionMessage) -> str:
    """The reply as the model wrote it, whether or not the server has parsed the calls out."""
    calls = []
    for call in message.tool_calls or []:
        if call.type != "function":
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


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": data_uri(part["image"])}}


def _call(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    written = json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}}
