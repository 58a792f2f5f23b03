"""Perceptual hashes: 64 bits that stay nearly the same when a picture is scaled or recompressed.

The DCT hash (pHash) of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions" (2010), section 3.1.1: grey, 32 x 32 pixels, two-dimensional DCT-II, the 8 x 8 lowest
frequencies, a bit each for "above their median".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from toolwise.data.image import open_image

BITS = 64
SAME_PICTURE = 6
"""At most so many different bits between two versions of one picture, as a rule."""

_SIDE = 32
_LOW = 8
_DRAFT_SIDE = 256
_K, _N = np.mgrid[:_LOW, :_SIDE]
_DCT_KN = np.cos(np.pi * _K * (2 * _N + 1) / (2 * _SIDE))
_BIT_VALUES = 1 << np.arange(BITS - 1, -1, -1, dtype=np.uint64)


def image_hash(image: bytes) -> int:
    """The hash of an encoded picture, from 0 to 2**64 - 1.

    A picture in one flat colour has no structure to hash: all of them get 0 or 2**63.

    Raises:
        CorruptImage: the bytes are no picture, a damaged one, or one of absurdly many pixels.
    """
    return grey_hash(decode_grey(image))


def decode_grey(image: bytes) -> Image.Image:
    """An encoded picture in grey, upright; a large JPEG at a fraction of its size.

    Raises:
        CorruptImage: as `image_hash`.
    """
    with open_image(image) as opened:
        # A JPEG of 8K is decoded at an eighth of its size, in a fraction of the time.
        opened.draft("L", (_DRAFT_SIDE, _DRAFT_SIDE))
        return ImageOps.exif_transpose(opened).convert("L")


def grey_hash(grey: Image.Image) -> int:
    """`image_hash` of a picture from `decode_grey`."""
    grey_NN = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    # Rounded, so that what ought to be zero is no noise of either sign.
    low_KK = np.round(_DCT_KN @ grey_NN @ _DCT_KN.T, 3)
    bits = (low_KK > np.median(low_KK)).ravel()
    return int(_BIT_VALUES[bits].sum())


def hash_distance(one: int, other: int) -> int:
    """How many of the 64 bits differ: 0 for the same picture, about 32 for unrelated ones."""
    return (one ^ other).bit_count()


def hash_distances(one: int, others: Sequence[int] | np.ndarray) -> np.ndarray:
    """`hash_distance` of one hash to each of `others` [N]; [N], integers."""
    return np.bitwise_count(np.asarray(others, dtype=np.uint64) ^ np.uint64(one))
