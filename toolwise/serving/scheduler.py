"""The thread that computes: whoever has come joins, and everybody gets their next token.

Legend: R rows (turns being written), N of them new, W width of a block, V vocabulary.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Sequence

import torch
from torch import Tensor

from toolwise.agent.mrope import mrope_positions
from toolwise.agent.rendering import Pixels
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.errors import BackendError
from toolwise.serving.turn_cache import TurnCache, gathered, joined
from toolwise.serving.writing import Conversation, Writing

_log = logging.getLogger("toolwise.serving")


class Scheduler:
    """Writes turns, each token of all of them in one pass of the model.

    Args:
        engine: the model and its rendering; nobody else may use it.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        self._model = engine.model
        self._renderer = engine.renderer
        self._suppressed = list(engine.suppressed_ids)
        config = engine.model.config.get_text_config()
        self._layers: int = config.num_hidden_layers
        self.context: int = config.max_position_embeddings
        """Tokens a conversation may have."""
        self._arrived: queue.SimpleQueue[Writing | None] = queue.SimpleQueue()
        self._rows: list[Writing] = []
        self._cache = TurnCache(self._layers)

    def add(self, writing: Writing) -> None:
        """Let a turn be written."""
        self._arrived.put(writing)

    def stop(self) -> None:
        """Let `run` return; turns that are not over fail."""
        self._arrived.put(None)

    def run(self) -> None:
        """Compute until stopped."""
        with torch.inference_mode():
            while (newcomers := self._newcomers()) is not None:
                try:
                    self._advance(newcomers)
                except Exception as error:
                    _log.error("the model failed", exc_info=error)
                    self._fail(newcomers, f"{type(error).__name__}: {error}")

    def _newcomers(self) -> list[Writing] | None:
        """Who has come; waits where there is nothing else to do, and is None at the end."""
        found: list[Writing] = []
        while not (self._rows or found) or not self._arrived.empty():
            writing = self._arrived.get()
            if writing is None:
                self._fail(found, "the server is stopping")
                return None
            if not writing.abandoned:
                found.append(writing)
        return found

    def _fail(self, newcomers: Sequence[Writing], reason: str) -> None:
        for writing in {*self._rows, *newcomers}:
            writing.fail(BackendError(f"the model cannot answer: {reason}"))
        self._rows, self._cache = [], TurnCache(self._layers)

    def _advance(self, newcomers: list[Writing]) -> None:
        blocks = [self._step()] if self._rows else []
        for returning in (False, True):
            group = [w for w in newcomers if (w.conversation.cache is not None) is returning]
            if group:
                logits_NV, cache = self._read([writing.conversation for writing in group])
                blocks.append(logits_NV)
                self._cache = joined(self._cache, cache) if self._rows else cache
                self._rows += group
        for writing, token in zip(self._rows, self._choose(torch.cat(blocks)), strict=True):
            writing.add(token, self.context)
        self._let_go()

    def _step(self) -> Tensor:
        """Read everybody's last token; returns the logits after it, [R, V]."""
        device = self._model.device
        ids_R1 = torch.tensor([[writing.ids[-1]] for writing in self._rows], device=device)
        places = [writing.conversation.position for writing in self._rows]
        position_3R1 = torch.tensor(places, device=device)[None, :, None].expand(3, -1, 1)
        for writing in self._rows:
            writing.conversation.position += 1
        return self._forward(self._cache, ids_R1, position_3R1, torch.ones_like(ids_R1).bool())

    def _read(self, conversations: Sequence[Conversation]) -> tuple[Tensor, TurnCache]:
        """Read what is pending; returns the logits after it, [N, V], and the cache of these."""
        cache = TurnCache(self._layers)
        for number, conversation in enumerate(conversations):
            if conversation.cache is not None:
                cache = joined(cache, conversation.cache) if number else conversation.cache
        shape = (len(conversations), max(len(c.pending) for c in conversations))
        ids_NW = torch.full(shape, self._renderer.end_id)
        mask_NW = torch.zeros(shape, dtype=torch.bool)
        position_3NW = torch.zeros((3, *shape), dtype=torch.long)
        pixels: list[Pixels] = []
        for row, conversation in enumerate(conversations):
            pixels += conversation.pixels
            left = shape[1] - len(conversation.pending)
            ids_NW[row, left:] = torch.tensor(conversation.pending)
            mask_NW[row, left:] = True
            position_3NW[:, row, left:], conversation.position = mrope_positions(
                conversation.pending,
                [image.grid for image in conversation.pixels],
                conversation.position,
                self._renderer.image_id,
                self._renderer.merge_size,
            )
            conversation.pending, conversation.pixels, conversation.cache = [], [], None
        vision: dict[str, Tensor] = {}
        device = self._model.device
        if pixels:
            vision = {
                "pixel_values": torch.cat([image.values for image in pixels]).to(device),
                "image_grid_thw": torch.tensor([image.grid for image in pixels], device=device),
            }
        block = ids_NW.to(device), position_3NW.to(device), mask_NW.to(device)
        return self._forward(cache, *block, **vision), cache

    def _forward(
        self,
        cache: TurnCache,
        ids_RW: Tensor,
        position_3RW: Tensor,
        mask_RW: Tensor,
        **vision: Tensor,
    ) -> Tensor:
        """Extend the cache by a block; returns the last position's logits, [R, V]."""
        output = self._model(
            input_ids=ids_RW,
            position_ids=position_3RW,
            attention_mask=cache.extend_mask(mask_RW),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **vision,
        )
        return output.logits[:, -1]

    def _choose(self, logits_RV: Tensor) -> list[int]:
        """A token for every row."""
        logits_RV = logits_RV.float()
        logits_RV[:, self._suppressed] = float("-inf")
        tokens: list[int] = logits_RV.argmax(-1).tolist()
        for row, writing in enumerate(self._rows):
            if writing.sampled:
                tokens[row] = writing.draw(logits_RV[row])
        return tokens

    def _let_go(self) -> None:
        """Hand over the turns that have ended, and forget those that nobody waits for."""
        ended = [writing for writing in self._rows if writing.over and not writing.abandoned]
        stay = [row for row, writing in enumerate(self._rows) if not writing.over]
        if len(stay) == len(self._rows):
            return
        for writing in ended:
            conversation = writing.conversation
            conversation.cache = gathered(self._cache, [self._rows.index(writing)])
            conversation.pending = [writing.ids[-1]]
            conversation.tokens += len(writing.ids)
        self._cache = gathered(self._cache, stay) if stay else TurnCache(self._layers)
        self._rows = [self._rows[row] for row in stay]
        for writing in ended:
            writing.finish()
