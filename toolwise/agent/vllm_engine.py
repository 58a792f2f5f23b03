"""An engine over vLLM, for rollouts of a model that is trained elsewhere: tokens in, tokens out.

A chat endpoint hands back text. A trainer needs the very tokens that were sampled, with their
log-probabilities, and each turn continued from them without being tokenised again. So conversations
are rendered here, as for the in-process engine, and vLLM is only asked for the next tokens.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from toolwise.agent.conversation import Conversation, turn_of
from toolwise.agent.engine import Sampling, TokenRecord, Turn
from toolwise.agent.rendering import Renderer
from toolwise.agent.transformers_engine import suppressed_token_ids
from toolwise.data import Message
from toolwise.errors import InputError


class TokenRequest(NamedTuple):
    """A prompt to be continued.

    Args:
        ids: its tokens, each image's placeholders among them.
        images: encoded, in the order of their placeholders.
        max_tokens: at most so many are wanted.
        seed: makes what is sampled repeatable, where the source can.
    """

    ids: tuple[int, ...]
    images: tuple[bytes, ...]
    max_tokens: int
    seed: int | None


class Sampled(NamedTuple):
    """What continues a prompt: tokens, end marker included, and their log-probabilities."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class TokenSource(Protocol):
    """Continues prompts; raises `BackendError` when it cannot."""

    name: str

    async def context(self) -> int:
        """Tokens the model reads and writes at most."""
        ...

    async def sample(
        self,
        requests: Sequence[TokenRequest],
        sampling: Sampling,
        *,
        end_id: int,
        image_id: int,
        suppressed_ids: Sequence[int],
    ) -> list[Sampled]:
        """One continuation each, in order.

        Args:
            requests: the prompts.
            sampling: temperature and nucleus; log-probabilities are under that distribution.
            end_id: ends a continuation.
            image_id: the placeholder an image's tokens are made of.
            suppressed_ids: never sampled, and so no part of the distribution.
        """
        ...


class VLLMEngine:
    """Decodes with vLLM (see `toolwise.agent.engine.Engine`).

    Args:
        source: a server, or vLLM in this process.
        processor: the model's.
    """

    def __init__(self, source: TokenSource, processor: Any) -> None:
        self.name = source.name
        self.source = source
        self.renderer = Renderer(processor)
        self.suppressed_ids: Sequence[int] = suppressed_token_ids(processor.tokenizer)
        # One result may take up no more than an eighth of the context.
        self.max_result_chars = int(min(processor.tokenizer.model_max_length, 2**20)) // 8

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> VLLMBatch:
        """Open a batch; nothing is sent before the first turn."""
        prompts = [self.renderer.prompt(list(messages), list(tools)) for messages in conversations]
        return VLLMBatch(self, [_Conversation(p.ids, list(p.images)) for p in prompts])


@dataclass(slots=True, eq=False)
class _Conversation(Conversation):
    """A conversation, and how many turns of it were sampled."""

    turns: int = 0


class VLLMBatch:
    """Conversations kept here as tokens and sent whole each turn; vLLM caches what it has read."""

    def __init__(self, engine: VLLMEngine, conversations: list[_Conversation]) -> None:
        self._engine = engine
        self._conversations = conversations

    def append(self, index: int, messages: Sequence[Message]) -> None:
        """Add tool results to one conversation."""
        self._conversations[index].give(self._engine.renderer.tool_results(list(messages)))

    def tokens(self, index: int) -> TokenRecord:
        """The token record of one conversation."""
        return self._conversations[index].record()

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        """One assistant turn for each conversation in `indices`.

        A conversation whose tool results have filled the context ends like a turn that was cut.

        Raises:
            BackendError: vLLM could not be reached or kept failing.
            InputError: a prompt is longer than the model's context.
        """
        started = time.perf_counter()
        context = await self._engine.source.context()
        requests = {index: self._request(index, sampling, context) for index in indices}
        asked = [index for index, request in requests.items() if request.max_tokens > 0]
        sampled = await self._engine.source.sample(
            [requests[index] for index in asked],
            sampling,
            end_id=self._engine.renderer.end_id,
            image_id=self._engine.renderer.image_id,
            suppressed_ids=self._engine.suppressed_ids,
        )
        written = dict(zip(asked, sampled, strict=True))
        seconds = time.perf_counter() - started
        return [
            self._finish(index, len(requests[index].ids), written.get(index), sampling, seconds)
            for index in indices
        ]

    def _request(self, index: int, sampling: Sampling, context: int) -> TokenRequest:
        conversation = self._conversations[index]
        ids = (*conversation.prompt_ids, *conversation.completion_ids)
        room = context - len(ids)
        if room <= 0 and not conversation.turns:
            raise InputError(
                f"a conversation of {len(ids)} tokens is too long; {self._engine.name} reads "
                f"{context}"
            )
        seed = sampling.seed
        if seed is not None:  # a stream of random numbers of its own for each turn
            seed = zlib.crc32(f"{seed} {index} {conversation.turns}".encode()) % 2**31
        room = min(sampling.max_tokens, room)
        return TokenRequest(ids, tuple(conversation.images), room, seed)

    def _finish(
        self,
        index: int,
        prompt_tokens: int,
        sampled: Sampled | None,
        sampling: Sampling,
        seconds: float,
    ) -> Turn:
        if sampled is None:
            return Turn("", "length", prompt_tokens, 0, seconds=seconds)
        conversation = self._conversations[index]
        conversation.turns += 1
        conversation.write(sampled.ids, sampled.logprobs)
        return turn_of(
            sampled.ids,
            sampled.logprobs,
            self._engine.renderer,
            sampling,
            prompt_tokens=prompt_tokens,
            seconds=seconds,
        )
