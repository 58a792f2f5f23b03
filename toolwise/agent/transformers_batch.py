"""How the in-process engine decodes: conversations as rows of one KV cache.

Conversations that have read and written the same so far are one row of the batch: the prompt of a
group, its images, and the tokens its rollouts have in common go through the model once. A row
splits where its conversations part. The KV cache is kept over tool turns: after a tool answered,
only its response is read.

Legend: N rows, W width of the block being read, K cached positions, M conversations still writing,
V vocabulary.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from toolwise.agent.conversation import Conversation, turn_of
from toolwise.agent.engine import OnTurn, Sampling, TokenRecord, Turn
from toolwise.agent.mrope import mrope_positions
from toolwise.agent.ragged_cache import RaggedCache
from toolwise.agent.rendering import Pixels
from toolwise.agent.sampling import choose
from toolwise.data import Message

if TYPE_CHECKING:
    from toolwise.agent.transformers_engine import TransformersEngine


@dataclass(slots=True, eq=False)
class CachedConversation(Conversation):
    """A conversation of which the cache holds what the model has read.

    `pending` are ids that it has not read, as are `images` from `read_images` on; `length`
    positions of `row` are what it has read.
    """

    pending: list[int] = field(default_factory=list)
    read_images: int = 0
    next_position: int = 0
    row: _Row | None = None
    length: int = 0


@dataclass(slots=True, eq=False)
class _Row:
    """A row of the cache, and the numbers of the conversations that are writing in it."""

    members: list[int]
    next_position: int = 0


@dataclass(slots=True)
class _Writing:
    """The turn a conversation is writing; `prompt_tokens` were there before it."""

    index: int
    conversation: CachedConversation
    prompt_tokens: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersBatch:
    """Conversations that share one KV cache (see `toolwise.agent.engine.Batch`)."""

    def __init__(self, engine: TransformersEngine, conversations: list[CachedConversation]) -> None:
        self._engine = engine
        self._conversations = conversations
        self.on_turn: OnTurn | None = None
        self._rows: list[_Row] = []
        layers = engine.model.config.get_text_config().num_hidden_layers
        self._cache = RaggedCache(layers)
        self._generator: torch.Generator | None = None

    def append(self, index: int, messages: Sequence[Message]) -> None:
        """Add tool results to one conversation."""
        rendered = self._engine.renderer.tool_results(list(messages))
        conversation = self._conversations[index]
        conversation.give(rendered)
        conversation.pending += rendered.ids

    def tokens(self, index: int) -> TokenRecord:
        """The token record of one conversation."""
        return self._conversations[index].record()

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        """One assistant turn for each conversation in `indices`, which are all that go on.

        `on_turn` is told of each as it ends, and whoever waits in the event loop gets a chance
        after every token.
        """
        started = time.perf_counter()
        writing = [self._open(index) for index in indices]
        turns: dict[int, Turn] = {}
        if self._generator is None and sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
        with _inference(self._engine.model):
            logits_NV = self._read(writing)
            while True:
                splits, ended = self._write(logits_NV, writing, sampling)
                for w in ended:
                    turn = self._finish(w, time.perf_counter() - started, sampling)
                    turns[w.index] = turn
                    if self.on_turn:
                        self.on_turn(w.index, turn)
                if not splits:
                    break
                await asyncio.sleep(0)
                logits_NV = self._step(splits)
        return [turns[index] for index in indices]

    def _open(self, index: int) -> _Writing:
        c = self._conversations[index]
        return _Writing(index, c, len(c.prompt_ids) + len(c.completion_ids))

    def _finish(self, writing: _Writing, seconds: float, sampling: Sampling) -> Turn:
        """Record one turn's tokens; the last one has been sampled but not yet read."""
        conversation, ids = writing.conversation, writing.ids
        conversation.write(ids, writing.logprobs)
        conversation.pending = [ids[-1]]
        return turn_of(
            ids,
            writing.logprobs,
            self._engine.renderer,
            sampling,
            prompt_tokens=writing.prompt_tokens,
            seconds=seconds,
        )

    @torch.inference_mode()
    def _read(self, writing: Sequence[_Writing]) -> Tensor:
        """Read what is pending, once where it is the same; returns the logits after it, [N, V]."""
        alike: dict[Any, list[int]] = {}
        for number, w in enumerate(writing):
            c = w.conversation
            key = id(c.row), c.length, tuple(c.pending), tuple(c.images[c.read_images :])
            alike.setdefault(key, []).append(number)
        # Rows of similar lengths stand together, so that they can be read together.
        groups = sorted(
            alike.values(), key=lambda group: -len(writing[group[0]].conversation.pending)
        )
        first = [writing[group[0]].conversation for group in groups]
        place = {id(row): number for number, row in enumerate(self._rows)}
        self._cache.arrange(
            [place[id(c.row)] if c.row else number for number, c in enumerate(first)],
            [c.length for c in first],
        )
        self._rows = [_Row(group) for group in groups]
        widths = [len(c.pending) for c in first]
        logits = [self._read_block(rows, first[rows]) for rows in _similar(widths)]
        for w in writing:
            w.conversation.read_images = len(w.conversation.images)
        return torch.cat(logits)

    def _read_block(self, rows: slice, conversations: Sequence[CachedConversation]) -> Tensor:
        """Read what is pending in some rows and return the logits after it."""
        renderer = self._engine.renderer
        width = max(len(c.pending) for c in conversations)
        shape = (len(conversations), width)
        ids_NW = torch.full(shape, renderer.end_id, dtype=torch.long)
        position_3NW = torch.zeros((3, *shape), dtype=torch.long)
        pixels: list[Pixels] = []
        for at, c in enumerate(conversations):
            images = [renderer.pixels(image) for image in c.images[c.read_images :]]
            pixels += images
            left = width - len(c.pending)
            ids_NW[at, left:] = torch.tensor(c.pending)
            position_3NW[:, at, left:], self._rows[rows.start + at].next_position = mrope_positions(
                c.pending,
                [image.grid for image in images],
                c.next_position,
                renderer.image_id,
                renderer.merge_size,
            )
        device = self._engine.model.device
        vision: dict[str, Tensor] = {}
        if pixels:
            self._engine.stats.images += len(pixels)
            vision = {
                "pixel_values": torch.cat([image.values for image in pixels]).to(device),
                "image_grid_thw": torch.tensor([image.grid for image in pixels], device=device),
            }
        widths = [len(c.pending) for c in conversations]
        return self._forward(rows, widths, ids_NW.to(device), position_3NW.to(device), **vision)

    @torch.inference_mode()
    def _write(
        self, logits_NV: Tensor, writing: Sequence[_Writing], sampling: Sampling
    ) -> tuple[list[tuple[int, int, list[int]]], list[_Writing]]:
        """Choose everybody's next token.

        Returns:
            How the rows go on, as (row, token read next, conversations that wrote it), and whose
            turn has ended.
        """
        row_M, number_M = [], []
        for at, row in enumerate(self._rows[: len(logits_NV)]):
            row_M += [at] * len(row.members)
            number_M += row.members
        noise_M = None
        if sampling.temperature > 0:
            # Everybody's own, whoever else is still writing.
            noise = torch.rand(len(writing), generator=self._generator, dtype=torch.float64)
            noise_M = noise[number_M].to(logits_NV.device)
        logits_NV = logits_NV.float()
        logits_NV[:, self._engine.suppressed_ids] = float("-inf")
        tokens, logprobs = choose(logits_NV, row_M, noise_M, sampling)
        splits: dict[tuple[int, int], list[int]] = {}
        ended = []
        for at, number, token, logprob in zip(row_M, number_M, tokens, logprobs, strict=True):
            w = writing[number]
            w.ids.append(token)
            w.logprobs.append(logprob)
            if token == self._engine.renderer.end_id or len(w.ids) == sampling.max_tokens:
                w.conversation.row = self._rows[at]
                w.conversation.length = self._cache.lengths[at]
                w.conversation.next_position = self._rows[at].next_position
                ended.append(w)
            else:
                splits.setdefault((at, token), []).append(number)
        return [(at, token, members) for (at, token), members in splits.items()], ended

    @torch.inference_mode()
    def _step(self, splits: list[tuple[int, int, list[int]]]) -> Tensor:
        """Let rows split, and read one token in each that goes on; returns logits [N, V].

        Those come first. The others stay as they are: their conversations may have a next turn.
        """
        going = {at for at, _, _ in splits}
        splits = [splits[i] for i in _in_place([at for at, _, _ in splits], 0)]
        waiting = [at for at in range(len(self._rows)) if at not in going]
        waiting = [waiting[i] for i in _in_place(waiting, len(splits))]
        sources = [at for at, _, _ in splits] + waiting
        old = self._rows
        taken: set[int] = set()
        self._rows = []
        for at, _, members in splits:
            # The row itself goes on with the first of the splits, so that those who have ended
            # in it find their beginning there.
            row = _Row(members, old[at].next_position) if at in taken else old[at]
            row.members = members
            taken.add(at)
            self._rows.append(row)
        self._rows += [old[at] for at in waiting]
        self._cache.arrange(sources, [self._cache.lengths[at] for at in sources])
        device = self._engine.model.device
        ids_N1 = torch.tensor([[token] for _, token, _ in splits], device=device)
        active = self._rows[: len(splits)]
        position_N = torch.tensor([row.next_position for row in active], device=device)
        for row in active:
            row.next_position += 1
        position_3N1 = position_N[None, :, None].expand(3, -1, 1)
        return self._forward(slice(0, len(splits)), [1] * len(splits), ids_N1, position_3N1)

    def _forward(
        self,
        rows: slice,
        widths: Sequence[int],
        ids_NW: Tensor,
        position_3NW: Tensor,
        **vision: Tensor,
    ) -> Tensor:
        """Read a block in some rows and return the last position's logits."""
        stats, model = self._engine.stats, self._engine.model
        stats.computed += sum(widths)
        stats.padding += ids_NW.numel() - sum(widths)
        members = [len(row.members) for row in self._rows[rows]]
        stats.shared += sum((n - 1) * w for n, w in zip(members, widths, strict=True))
        mask = self._cache.announce(rows, widths, ids_NW.device)
        if mask is not None and model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(model.dtype).min
            )
        output = model(
            input_ids=ids_NW,
            position_ids=position_3NW,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **vision,
        )
        return output.logits[:, -1]


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Evaluation mode, and attention that takes a mask of any shape."""
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    if attention not in ("sdpa", "eager"):
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if attention not in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
        if was_training:
            model.train()


def _similar(widths: Sequence[int]) -> Iterator[slice]:
    """Divide falling widths into blocks in which none is shorter than two thirds of the first."""
    start = 0
    for at, width in enumerate(widths):
        if 3 * width < 2 * widths[start]:
            yield slice(start, at)
            start = at
    yield slice(start, len(widths))


def _in_place(sources: Sequence[int], first: int) -> list[int]:
    """An order of `sources` for the places from `first` on, in which who can stay does."""
    order: list[int | None] = [None] * len(sources)
    moved = []
    for number, source in enumerate(sources):
        if 0 <= source - first < len(order) and order[source - first] is None:
            order[source - first] = number
        else:
            moved.append(number)
    return [moved.pop() if number is None else number for number in order]
