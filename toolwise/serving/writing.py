"""A turn while it is written: its tokens, its text so far, and why it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolwise.agent import Sampling, Turn
from toolwise.agent.rendering import Pixels
from toolwise.serving.streaming import OnText
from toolwise.serving.turn_cache import TurnCache

_UNFINISHED = "\ufffd"  # what the first bytes of a character decode to
_GREEDY = 1e-5  # a temperature below it would divide logits beyond what a float holds
_LONGEST_CHARACTER = 4  # bytes, and tokens at most; what takes longer is no character


class Conversation:
    """One conversation as the model keeps it.

    Attributes:
        pending: ids the model has not read yet.
        pixels: the images whose placeholders stand in `pending`.
        tokens: ids of the whole conversation.
        position: the next M-RoPE position.
        cache: one row, all that has been read; None before the first turn and during one.
    """

    def __init__(self, ids: Sequence[int], pixels: Sequence[Pixels]) -> None:
        self.pending = list(ids)
        self.pixels = list(pixels)
        self.tokens = len(self.pending)
        self.position = 0
        self.cache: TurnCache | None = None


class Writing:
    """One turn of a conversation; `turn` is its future, in the event loop that asked for it.

    Args:
        conversation: what it belongs to.
        sampling: decoding settings.
        tokenizer: turns ids into text.
        end_id: the token that ends a turn.
        on_text: told, in that event loop, `index` and each new piece of text.
        index: the conversation's position in its batch.
    """

    def __init__(
        self,
        conversation: Conversation,
        sampling: Sampling,
        tokenizer: Any,
        end_id: int,
        on_text: OnText | None = None,
        index: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.turn: asyncio.Future[Turn] = self._loop.create_future()
        self.conversation = conversation
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.abandoned = False
        """Nobody waits for it any more."""
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._end_id = end_id
        self._on_text = on_text
        self._index = index
        self._generator: torch.Generator | None = None
        self._started = time.perf_counter()
        self._prompt_tokens = conversation.tokens
        self._text = ""
        self._told = 0
        self._decoded = self._window = 0  # ids before these are in `_text`, are read as context

    @property
    def over(self) -> bool:
        """Whether no further token is to be written."""
        return self.abandoned or self.finish_reason is not None

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn rather than the likeliest taken."""
        return self._sampling.temperature >= _GREEDY

    def draw(self, logits_V: Tensor) -> int:
        """A token from the request's own distribution, with its own random numbers."""
        if self._generator is None:
            self._generator = generator = torch.Generator(logits_V.device)
            if self._sampling.seed is None:
                generator.seed()
            else:
                generator.manual_seed(self._sampling.seed)
        probabilities_V = (logits_V / self._sampling.temperature).softmax(-1)
        if self._sampling.top_p < 1:
            ordered_V, order_V = probabilities_V.sort(descending=True)
            outside_V = ordered_V.cumsum(-1) - ordered_V >= self._sampling.top_p
            outside_V[0] = False  # a float holds no `top_p` however small
            probabilities_V[order_V[outside_V]] = 0
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))

    def add(self, token: int, context: int) -> None:
        """The next token; ends the turn where it is the last.

        Args:
            token: what was chosen.
            context: tokens a conversation may have.
        """
        self.ids.append(token)
        if token == self._end_id:
            self.finish_reason = "stop"
        elif (
            len(self.ids) == self._sampling.max_tokens
            or self._prompt_tokens + len(self.ids) >= context
        ):
            self.finish_reason = "length"
        if self._on_text or self._sampling.stop:
            self._read_text()

    def finish(self) -> None:
        """Hand the turn over; the conversation has to be ready for its next one."""
        ended = self.ids[-1] == self._end_id
        text = self._tokenizer.decode(self.ids[:-1] if ended else self.ids)
        cut = self._cut(text)
        turn = Turn(
            text=text if cut is None else text[:cut],
            finish_reason=self.finish_reason or "stop",
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self.ids),
            token_ids=tuple(self.ids),
            seconds=time.perf_counter() - self._started,
        )
        self._loop.call_soon_threadsafe(self._settle, turn)

    def fail(self, error: Exception) -> None:
        """Hand a failure over."""
        self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, outcome: Turn | Exception) -> None:
        if self.turn.done():
            return
        if isinstance(outcome, Turn):
            self.turn.set_result(outcome)
        else:
            self.turn.set_exception(outcome)

    def _read_text(self) -> None:
        """Decode what is new, in a window: the text of some ids depends on those before."""
        ids = self.ids[:-1] if self.ids[-1] == self._end_id else self.ids
        before = self._tokenizer.decode(ids[self._window : self._decoded])
        text = self._tokenizer.decode(ids[self._window :])
        waiting = len(ids) - self._decoded
        whole = not text.endswith(_UNFINISHED) or waiting > _LONGEST_CHARACTER
        if len(text) > len(before) and (self.over or whole):
            self._text += text[len(before) :]
            self._window, self._decoded = self._decoded, len(ids)
        cut = self._cut(self._text)
        if cut is not None:
            self._text = self._text[:cut]
            self.finish_reason = "stop"
        # The end of the text may be the beginning of a stop string.
        held = 0 if self.over else max(map(len, self._sampling.stop), default=1) - 1
        certain = len(self._text) - held
        if self._on_text and certain > self._told:
            piece = self._text[self._told : certain]
            self._told = certain
            self._loop.call_soon_threadsafe(self._on_text, self._index, piece)

    def _cut(self, text: str) -> int | None:
        return min((text.find(stop) for stop in self._sampling.stop if stop in text), default=None)
