"""A KV cache that rows can join and leave, each row with padding where others have tokens.

Legend: R rows, H heads, K cached positions, W positions of one block, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class TurnCache(Cache):
    """Keys, values and the mask of the positions that hold tokens.

    Args:
        layers: decoder layers of the model.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(layers)])
        self.mask_RK: Tensor | None = None

    def extend_mask(self, mask_RW: Tensor) -> Tensor:
        """Announce a block, False where it is padding; returns the mask of all K positions."""
        self.mask_RK = mask_RW if self.mask_RK is None else torch.cat([self.mask_RK, mask_RW], 1)
        return self.mask_RK


def gathered(cache: TurnCache, rows: Sequence[int]) -> TurnCache:
    """Some rows of a cache in as few positions as hold them, padding to the left."""
    assert cache.mask_RK is not None
    mask_RK = cache.mask_RK[list(rows)]
    width = int(mask_RK.sum(1).max())
    order_RK = mask_RK.long().argsort(dim=1, stable=True)[:, -width:]
    index_RHKD = order_RK[:, None, :, None]
    taken = TurnCache(len(cache.layers))
    for old, new in zip(cache.layers, cast(Any, taken.layers), strict=True):
        states = []
        for all_RHKD in _states(old):
            chosen_RHKD = all_RHKD[list(rows)]
            shape = (-1, chosen_RHKD.shape[1], -1, chosen_RHKD.shape[3])
            states.append(chosen_RHKD.gather(2, index_RHKD.expand(shape)))
        new.update(*states)
    taken.extend_mask(mask_RK.gather(1, order_RK))
    return taken


def joined(first: TurnCache, second: TurnCache) -> TurnCache:
    """The rows of two caches, those with fewer positions padded to the left."""
    assert first.mask_RK is not None
    assert second.mask_RK is not None
    width = max(first.mask_RK.shape[1], second.mask_RK.shape[1])
    both = TurnCache(len(first.layers))
    for one, other, new in zip(first.layers, second.layers, cast(Any, both.layers), strict=True):
        pairs = zip(_states(one), _states(other), strict=True)
        new.update(*(torch.cat([_padded(a, width), _padded(b, width)]) for a, b in pairs))
    masks = [
        torch.nn.functional.pad(mask_RK, (width - mask_RK.shape[1], 0))
        for mask_RK in (first.mask_RK, second.mask_RK)
    ]
    both.extend_mask(torch.cat(masks))
    return both


def _padded(states_RHKD: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(states_RHKD, (0, 0, width - states_RHKD.shape[2], 0))


def _states(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values
