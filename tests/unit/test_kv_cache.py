"""Setting rows of a KV cache aside, against a cache in which every row goes on."""

from __future__ import annotations

import torch

from toolwise.agent.kv_cache import RowCache


def block(rows: list[int], start: int, width: int) -> torch.Tensor:
    """States [R, 1, W, 1] that name their row and position."""
    return torch.tensor([[[[100.0 * row + start + w] for w in range(width)]] for row in rows])


def feed(cache: RowCache, rows: list[int], start: int, width: int) -> torch.Tensor:
    cache.extend_mask(torch.ones(len(rows), width, dtype=torch.bool))
    states = block(rows, start, width)
    keys, values = cache.update(states, -states, 0)
    assert torch.equal(keys, -values)
    return keys[:, 0, :, 0]


def test_rows_set_aside_hold_padding_where_the_others_went_on() -> None:
    cache = RowCache(1)
    feed(cache, [0, 1, 2, 3], 0, 2)
    cache.narrow(torch.tensor([1, 3]))
    assert feed(cache, [1, 3], 2, 1).tolist() == [[100, 101, 102], [300, 301, 302]]
    cache.narrow(torch.tensor([1]))
    assert feed(cache, [3], 3, 40).shape == (1, 43)  # more than there was room for
    cache.widen()
    cache.widen()
    assert not cache.narrowed
    keys = feed(cache, [0, 1, 2, 3], 43, 1)
    assert cache.mask_RK is not None
    written = [keys[row][cache.mask_RK[row]].tolist() for row in range(4)]
    assert written[0] == [0, 1, 43]
    assert written[1] == [100, 101, 102, 143]
    assert written[2] == [200, 201, 243]
    assert written[3] == [300.0 + position for position in range(44)]
    assert cache.get_seq_length() == 44


def test_kept_rows_are_copies_that_go_their_own_ways() -> None:
    cache = RowCache(1)
    feed(cache, [0, 1], 0, 2)
    cache.keep(torch.tensor([1, 1, 0]))
    assert feed(cache, [7, 8, 9], 2, 1).tolist() == [[100, 101, 702], [100, 101, 802], [0, 1, 902]]
