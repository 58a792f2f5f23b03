"""Encoded images: opened, decoded and encoded; one error means that the bytes are corrupt."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from toolwise.errors import InputError

_DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise about bytes they cannot decode."""


class CorruptImage(InputError):
    """Bytes that do not decode to an image, or to one of absurdly many pixels.

    Args:
        reason: what the decoder says about them.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"an image cannot be read: {self.reason}"


@contextmanager
def open_image(
    data: bytes, formats: tuple[str, ...] | None = None
) -> Iterator[ImageFile.ImageFile]:
    """The image in `data`, opened; its pixels are decoded when the block asks for them.

    Args:
        data: encoded bytes.
        formats: Pillow's names of the formats accepted; by default all it knows.

    Raises:
        CorruptImage: on opening, or when a decoder fails inside the block.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            yield image
    except UnidentifiedImageError as error:
        raise CorruptImage("it is in no known image format") from error
    except _DECODER_ERRORS as error:
        raise CorruptImage(str(error)) from error


def decode_image(data: bytes) -> Image.Image:
    """Encoded bytes to an RGB image, fully loaded; raises `CorruptImage`."""
    with open_image(data) as image:
        return image.convert("RGB")


def encode_image(image: Image.Image) -> bytes:
    """RGB image to PNG bytes (lossless, so that a re-execution compares equal)."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    """Encoded image bytes as `data:<type>;base64,…`; raises `CorruptImage`."""
    with open_image(data) as header:
        kind = header.get_format_mimetype()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
