"""A KV cache whose rows each have their own length.

Every row starts at position 0 and is read on at its own end, so that a row that waits costs the
others nothing, and a row can be copied, or cut short, to go on in another way.

Legend: S rows stored, R rows of one block, H heads, K positions, W positions of one block, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _Block(NamedTuple):
    """Where the states of the forward pass at hand belong.

    `start` is where all rows go on, if they agree. Otherwise `source` are the row and column in the
    block of each token that is not padding, and `target` its row and position in the cache.
    """

    rows: slice
    total: int
    start: int | None
    source: tuple[Tensor, ...] = ()
    target: tuple[Tensor, ...] = ()


class RaggedCache(Cache):
    """Keys and values of rows that grow at their own pace.

    Args:
        layers: decoder layers of the model.
    """

    layers: list[_RaggedLayer]

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_RaggedLayer() for _ in range(layers)])
        self.lengths: list[int] = []
        """Positions cached in each row."""

    def arrange(self, sources: Sequence[int], lengths: Sequence[int]) -> None:
        """Make row i the first `lengths[i]` positions of what was row `sources[i]`.

        Sources may repeat; an empty cache takes any, with lengths of 0.
        """
        moved = [(to, source) for to, source in enumerate(sources) if to != source]
        for layer in self.layers:
            layer.move(len(sources), moved, max(lengths, default=0))
        self.lengths = list(lengths)

    def announce(self, rows: slice, widths: Sequence[int], device: torch.device) -> Tensor | None:
        """Prepare for a block [R, W] of these rows, right-aligned, `widths[r]` tokens in row r.

        Returns:
            The mask [R, 1, W, K] of what each token may look at; None where plain causal
            attention is the same.
        """
        starts, width = self.lengths[rows], max(widths)
        ends = [start + w for start, w in zip(starts, widths, strict=True)]
        self.lengths[rows] = ends
        position_RW = torch.tensor(ends, device=device)[:, None] + torch.arange(
            -width, 0, device=device
        )
        if len({*starts}) == 1 and len({*widths}) == 1:
            block = _Block(rows, max(ends), starts[0])
        else:
            left_R1 = width - torch.tensor(widths, device=device)[:, None]
            source = (torch.arange(width, device=device) >= left_R1).nonzero(as_tuple=True)
            target = source[0] + rows.start, position_RW[source]
            block = _Block(rows, max(ends), None, source, target)
        for layer in self.layers:
            layer.block = block
        if block.start is not None and (width == 1 or block.start == 0):
            return None
        # Padding must look at something, and position 0 is there in every row.
        position_R1W1 = position_RW.clamp(min=0)[:, None, :, None]
        return torch.arange(block.total, device=device) <= position_R1W1


class _RaggedLayer(DynamicLayer):
    """One layer's keys and values, [S, K, H, D] with room to spare."""

    block: _Block

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add [R, H, W, D] to the block's rows; returns their positions, [R, H, K, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._stores = [
                s.new_zeros(0, 0, s.shape[1], s.shape[3]) for s in (key_states, value_states)
            ]
        rows, total, start, source, target = self.block
        self._reserve(rows.stop, total)
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            states_RWHD = states.transpose(1, 2)
            if start is not None:
                store[rows, start:total] = states_RWHD
            else:
                store[target] = states_RWHD[source]
        self.keys, self.values = (store[rows, :total].transpose(1, 2) for store in self._stores)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions cached before the block at hand, where its rows agree."""
        return self.block.start or 0

    def move(self, rows: int, moved: Sequence[tuple[int, int]], used: int) -> None:
        """Copy rows to other places; `rows` are there afterwards, `used` positions in each."""
        if not self._stores:
            return
        self._reserve(rows, used)
        if moved:
            device = self._stores[0].device
            to, source = torch.tensor(moved, device=device).T
            for store in self._stores:
                store[to, :used] = store[source, :used]

    def _reserve(self, rows: int, positions: int) -> None:
        """Have room for so much; what nothing is written to must still be a number."""
        have_rows, have_positions = self._stores[0].shape[:2]
        if rows <= have_rows and positions <= have_positions:
            return
        rows = have_rows if rows <= have_rows else max(rows, have_rows * 3 // 2)
        longer = positions > have_positions
        positions = positions * 5 // 4 + 32 if longer else have_positions
        for number, old in enumerate(self._stores):
            new = old.new_zeros(rows, positions, *old.shape[2:])
            new[:have_rows, :have_positions] = old
            self._stores[number] = new
