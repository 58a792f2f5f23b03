"""A KV cache of rows with their own lengths, against attention over each row by itself."""

from __future__ import annotations

import torch

from toolwise.agent.ragged_cache import RaggedCache
from toolwise.agent.transformers_batch import _in_place, _similar

CPU = torch.device("cpu")


def feed(cache: RaggedCache, rows: slice, blocks: list[list[float]]) -> list[list[float]]:
    """Read right-aligned blocks of numbers; returns what each row's last token may look at."""
    width = max(map(len, blocks))
    padded = [[-1.0] * (width - len(block)) + block for block in blocks]
    states = torch.tensor(padded)[:, None, :, None]
    mask = cache.announce(rows, [len(block) for block in blocks], CPU)
    keys, values = cache.update(states, -states, 0)
    assert torch.equal(keys, -values)
    seen = torch.ones(keys.shape[0], keys.shape[2]).bool() if mask is None else mask[:, 0, -1]
    return [row[told].tolist() for row, told in zip(keys[:, 0, :, 0], seen, strict=True)]


def test_rows_grow_at_their_own_pace() -> None:
    cache = RaggedCache(1)
    cache.arrange([0, 1, 2], [0, 0, 0])
    assert feed(cache, slice(0, 2), [[1, 2, 3], [4]]) == [[1, 2, 3], [4]]
    assert feed(cache, slice(2, 3), [[5, 6]]) == [[5, 6]]
    assert feed(cache, slice(0, 3), [[7], [8, 9], [10]]) == [[1, 2, 3, 7], [4, 8, 9], [5, 6, 10]]
    assert feed(cache, slice(1, 2), [[11.0] * 50]) == [[4, 8, 9] + [11] * 50]
    assert cache.lengths == [4, 53, 3]


def test_a_token_looks_at_nothing_behind_it_and_padding_at_something() -> None:
    cache = RaggedCache(1)
    cache.arrange([0, 1], [0, 0])
    mask = cache.announce(slice(0, 2), [3, 1], CPU)
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert mask[1, 0].tolist() == [[True, False, False]] * 3


def test_rows_are_copied_cut_short_dropped_and_moved_at_once() -> None:
    cache = RaggedCache(2)
    cache.arrange([0, 1, 2], [0, 0, 0])
    feed(cache, slice(0, 3), [[1, 2], [3, 4], [5, 6]])
    cache.arrange([2, 0, 2, 0], [2, 1, 1, 2])
    read = feed(cache, slice(0, 4), [[7], [8], [9], [10]])
    assert read == [[5, 6, 7], [1, 8], [5, 9], [1, 2, 10]]


def test_rows_of_one_length_need_no_mask() -> None:
    cache = RaggedCache(1)
    cache.arrange([0, 1], [0, 0])
    assert cache.announce(slice(0, 2), [2, 2], CPU) is None
    cache.update(torch.ones(2, 1, 2, 1), torch.ones(2, 1, 2, 1), 0)
    assert cache.announce(slice(0, 2), [1, 1], CPU) is None
    cache.update(torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1), 0)
    assert cache.announce(slice(0, 2), [2, 2], CPU) is not None


def test_who_can_stay_in_place_does() -> None:
    assert _in_place([3, 0, 0, 2], 0) == [1, 2, 3, 0]
    assert _in_place([1, 5], 4) == [0, 1]


def test_blocks_hold_rows_of_similar_lengths() -> None:
    assert list(_similar([9, 8, 6, 5, 5, 1])) == [slice(0, 3), slice(3, 5), slice(5, 6)]
