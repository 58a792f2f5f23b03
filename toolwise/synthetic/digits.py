"""Real handwriting: the UCI digit scans that scikit-learn ships, split by scan.

A sign is written to be read, so scans that even their neighbours disagree about are left out: a
scan is used if its nearest neighbours (Euclidean, all 1,797) carry its label, fifteen of them to be
trained on (78% do), twenty to be asked about (70% do).

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI ML Repository,
1998 (1,797 scans of 8×8 pixels, grey levels 0–16).
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

HELD_OUT_EVERY = 5
"""Every fifth scan of a class is kept for the benchmark; training never sees it."""


class ScanSplit(StrEnum):
    """Which scans may be used."""

    TRAIN = "train"
    BENCHMARK = "benchmark"


LEGIBLE_NEIGHBOURS = {ScanSplit.TRAIN: 15, ScanSplit.BENCHMARK: 20}
"""Nearest neighbours that have to agree: signs are clearer in the benchmark than in training."""


@cache
def scans(split: ScanSplit) -> dict[int, tuple[Image.Image, ...]]:
    """8×8 grey images (ink is bright) of one split, by digit."""
    data: Any = load_digits()
    kept = {
        split: _agrees_with_neighbours(data.data, data.target, count)
        for split, count in LEGIBLE_NEIGHBOURS.items()
    }
    by_digit: dict[int, list[Image.Image]] = {digit: [] for digit in range(10)}
    seen = dict.fromkeys(range(10), 0)
    for number in np.flatnonzero(kept[ScanSplit.TRAIN]):
        scan, digit = data.images[number], int(data.target[number])
        held_out = seen[digit] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        seen[digit] += 1
        if held_out == (split is ScanSplit.BENCHMARK) and kept[split][number]:
            by_digit[digit].append(Image.fromarray((scan * 255 / 16).astype(np.uint8)))
    return {digit: tuple(images) for digit, images in by_digit.items()}


def _agrees_with_neighbours(
    scans: NDArray[np.float64], labels: NDArray[np.int64], count: int
) -> NDArray[np.bool_]:
    """Which of the N scans [N, 64] carry the label of their `count` nearest, and of any as near."""
    squares = (scans**2).sum(axis=1)
    distance_NN = squares[:, None] + squares - 2 * scans @ scans.T  # exact: grey levels are whole
    np.fill_diagonal(distance_NN, np.inf)
    furthest_N = np.partition(distance_NN, count - 1, axis=1)[:, count - 1]
    near_NN = distance_NN <= furthest_N[:, None]
    return (~near_NN | (labels[:, None] == labels)).all(axis=1)


class _Bend(NamedTuple):
    """How far a scan is bent, each from and to: by how much it is wider, taller, sheared, turned.

    `shear` and `turn` are tangents.
    """

    stretch: tuple[float, float]
    height: tuple[float, float]
    shear: tuple[float, float]
    turn: tuple[float, float]


_BENDS = {
    # Bent further than the benchmark's: other writers' hands are what the model has to read.
    ScanSplit.TRAIN: _Bend((0.9, 1.4), (0.92, 1.12), (-0.3, 0.3), (-0.15, 0.15)),
    ScanSplit.BENCHMARK: _Bend((0.95, 1.25), (1.0, 1.0), (-0.15, 0.15), (0.0, 0.0)),
}


def draw_digit(digit: int, size: int, split: ScanSplit, rng: np.random.Generator) -> Image.Image:
    """A random scan of `digit` as a square grey ink mask, bent a little about its centre."""
    pool = scans(split)[digit]
    scan = pool[int(rng.integers(len(pool)))]
    stretch, height, shear, turn = (rng.uniform(*span) for span in _BENDS[split])
    scale = scan.width / size
    centre = np.full(2, scan.width / 2)
    to_scan = np.array([[stretch, shear + turn], [-turn, height]])
    offset = centre - to_scan @ centre
    return scan.transform(
        (size, size),
        Image.Transform.AFFINE,
        np.column_stack([to_scan * scale, offset]).flatten().tolist(),
        Image.Resampling.BICUBIC,
    )
