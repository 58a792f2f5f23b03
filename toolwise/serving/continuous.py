"""The in-process model with continuous batching: turns join and leave between two tokens.

A turn that ends leaves with its keys and values, so that after its tool calls only their results
are read. Under greedy decoding every conversation gets the tokens it would get alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from toolwise.agent import Sampling, TokenRecord, Turn
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data import Message
from toolwise.errors import InputError
from toolwise.serving.scheduler import Scheduler
from toolwise.serving.streaming import OnText
from toolwise.serving.writing import Conversation, Writing


class ContinuousEngine:
    """One model that serves many requests at once, in a thread of its own.

    Args:
        engine: the model and its rendering.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        self.name = engine.name
        self.max_result_chars = engine.max_result_chars
        self._renderer = engine.renderer
        self._scheduler = Scheduler(engine)
        # The renderer's caches are not for two threads, and who waits for it must hold none.
        self._rendering = ThreadPoolExecutor(1, "rendering")
        longest = max(map(len, self._renderer.tokenizer.get_vocab()))
        self._max_characters = self._scheduler.context * longest

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Compute until the block ends."""
        thread = threading.Thread(target=self._scheduler.run, name="engine", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._scheduler.stop()
            await asyncio.to_thread(thread.join)
            self._rendering.shutdown()

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> ContinuousBatch:
        """Open a batch; its conversations are rendered with their first turn."""
        return ContinuousBatch(self, conversations, tools)

    async def write(
        self, conversation: Conversation, sampling: Sampling, on_text: OnText | None, index: int
    ) -> Turn:
        """One turn, among whatever else is being written; cancelling gives its place up."""
        writing = Writing(
            conversation,
            sampling,
            self._renderer.tokenizer,
            self._renderer.end_id,
            on_text,
            index,
        )
        self._scheduler.add(writing)
        try:
            return await writing.turn
        finally:
            writing.abandoned = True

    async def rendered(self, render: Callable[[], Conversation]) -> Conversation:
        """What `render` makes, in the thread for that: it decodes and scales images."""
        return await asyncio.get_running_loop().run_in_executor(self._rendering, render)

    def open_conversation(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> Conversation:
        """A conversation up to the assistant's next turn.

        Raises:
            InputError: it is longer than the model's context, or holds an unreadable image.
        """
        # No token is longer than the longest: what is far too long need not be rendered.
        characters = sum(
            len(part["text"])
            for message in messages
            for part in message["content"]
            if part["type"] == "text"
        )
        if characters > self._max_characters:
            raise InputError(
                f"a conversation of {characters} characters is too long; "
                f"{self.name} reads {self._scheduler.context} tokens"
            )
        prompt = self._renderer.prompt(messages, tools)
        pixels = [self._renderer.pixels(image) for image in prompt.images]
        if len(prompt.ids) >= self._scheduler.context:
            raise InputError(
                f"a conversation of {len(prompt.ids)} tokens is too long; "
                f"{self.name} reads {self._scheduler.context}"
            )
        return Conversation(prompt.ids, pixels)

    def add_results(self, conversation: Conversation, results: Sequence[Message]) -> None:
        """Tool results for the model to read before its next turn."""
        rendered = self._renderer.tool_results(results)
        conversation.pixels += [self._renderer.pixels(image) for image in rendered.images]
        conversation.pending += rendered.ids
        conversation.tokens += len(rendered.ids)


class ContinuousBatch:
    """The conversations of one request (see `toolwise.agent.engine.Batch`)."""

    def __init__(
        self,
        engine: ContinuousEngine,
        messages: Sequence[Sequence[Message]],
        tools: Sequence[dict[str, Any]],
    ) -> None:
        self._engine = engine
        self._messages = [list(conversation) for conversation in messages]
        self._tools = list(tools)
        self._conversations: dict[int, Conversation] = {}
        self._results: dict[int, list[Message]] = {}

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        """One assistant turn for each conversation in `indices`.

        Raises:
            InputError: a conversation is longer than the model's context.
            BackendError: the model failed.
        """
        return await self._turns(indices, sampling, None)

    async def stream(
        self, indices: Sequence[int], sampling: Sampling, on_text: OnText
    ) -> list[Turn]:
        """As `generate`; `on_text` gets each conversation's index and text as it is written."""
        return await self._turns(indices, sampling, on_text)

    def append(self, index: int, messages: Sequence[Message]) -> None:
        """Add tool results, to be rendered with the next turn."""
        self._results.setdefault(index, []).extend(messages)

    def tokens(self, index: int) -> TokenRecord:
        """Always raises `InputError`: a served engine keeps no records."""
        raise InputError("token records are for training, not for serving")

    async def _turns(
        self, indices: Sequence[int], sampling: Sampling, on_text: OnText | None
    ) -> list[Turn]:
        async def one(index: int) -> Turn:
            conversation = await self._engine.rendered(partial(self._conversation, index))
            return await self._engine.write(conversation, sampling, on_text, index)

        return list(await asyncio.gather(*map(one, indices)))

    def _conversation(self, index: int) -> Conversation:
        if index not in self._conversations:
            self._conversations[index] = self._engine.open_conversation(
                self._messages[index], self._tools
            )
        conversation = self._conversations[index]
        if results := self._results.pop(index, None):
            self._engine.add_results(conversation, results)
        return conversation
