"""What the agent loop asks of a model: batches of conversations that advance turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from toolwise.data import Message


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding settings of one request (OpenAI's names).

    Args:
        temperature: 0 is greedy.
        top_p: nucleus mass.
        max_tokens: limit per turn.
        seed: makes a sampled batch repeatable.
        stop: strings that end a turn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn.

    Args:
        text: decoded text, end-of-turn marker excluded.
        finish_reason: `stop`, or `length` where `max_tokens` cut it.
        prompt_tokens: tokens the model read for this turn (history included).
        completion_tokens: tokens it wrote.
        token_ids, logprobs: what it wrote, token by token, where the engine knows (training).
        seconds: wall time from the start of the generation to the end of this turn.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One conversation as tokens, for trainers (L completion tokens, tool responses included).

    Args:
        prompt_ids: system prompt, tools and the user's turn, up to the first token sampled.
        completion_ids: [L] everything after it: turns, tool responses, turns, …
        mask: [L] 1 where the model wrote the token, 0 for tool responses and template text.
        logprobs: [L] log-probability under the sampling distribution where mask is 1, else 0.
        images: encoded images in the order their placeholders stand, the prompt's own first.
        prompt_images: how many of `images` belong to the prompt.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    images: tuple[bytes, ...]
    prompt_images: int


class Batch(Protocol):
    """Conversations in flight, addressed by their position in the batch."""

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        """One assistant turn for each conversation in `indices`, in that order."""
        ...

    def append(self, index: int, messages: Sequence[Message]) -> None:
        """Add tool results to one conversation."""
        ...

    def tokens(self, index: int) -> TokenRecord:
        """The token record of one conversation; raises `InputError` where the engine has none."""
        ...


OnTurn = Callable[[int, Turn], None]
"""Gets a conversation's position in the batch and the turn it has just ended."""


@runtime_checkable
class TellsTurns(Protocol):
    """A batch that tells of each turn as it ends, so that its tools run while others write."""

    on_turn: OnTurn | None


class Engine(Protocol):
    """A model that can be talked to; raises `BackendError` when it cannot."""

    name: str
    max_result_chars: int
    """Longest text of one tool result this model should be given; the loop cuts what is longer."""

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> Batch:
        """Open a batch; `tools` are the JSON schemas put in each prompt (none: tools off)."""
        ...


@dataclass(slots=True)
class EngineStats:
    """What an engine has computed so far, in tokens and images.

    Args:
        computed: tokens that went through the model.
        padding: positions that went through it only to fill a block.
        shared: tokens that did not have to, because another conversation had begun the same way.
        images: images encoded.
    """

    computed: int = 0
    padding: int = 0
    shared: int = 0
    images: int = 0

    @property
    def padding_share(self) -> float:
        """Padding as a share of all positions that went through the model."""
        return self.padding / max(1, self.computed + self.padding)

    @property
    def shared_share(self) -> float:
        """Shared tokens as a share of all that were read and written."""
        return self.shared / max(1, self.computed + self.shared)

    def since(self, earlier: EngineStats) -> EngineStats:
        """What was computed after `earlier`, a copy of these."""
        return EngineStats(
            self.computed - earlier.computed,
            self.padding - earlier.padding,
            self.shared - earlier.shared,
            self.images - earlier.images,
        )


@runtime_checkable
class CountsWork(Protocol):
    """An engine that counts what it computes."""

    stats: EngineStats
