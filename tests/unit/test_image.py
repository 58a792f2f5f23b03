"""Decoding images: whatever is wrong with the bytes, one error says so."""

import io
import struct
import zlib

import pytest
from PIL import Image

from toolwise.data import CorruptImage, data_uri, decode_image, encode_image, open_image

WHOLE = encode_image(Image.effect_noise((64, 64), 100))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks, with right lengths and checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        b"\x89PNG broken",
        WHOLE[:60],
        WHOLE[: len(WHOLE) // 2],
        png(header(50_000, 50_000), (b"IDAT", zlib.compress(bytes(9)))),
        png(header(4, 4), (b"IDAT", b"no deflate stream"), (b"IEND", b"")),
        png((b"IHDR", b"short")),
        b"BM" + bytes(60),
        b"GIF89a\x01",
    ],
    ids=[
        "empty",
        "text",
        "a signature only",
        "a header only",
        "half",
        "too many pixels",
        "pixels that do not inflate",
        "a short header",
        "an empty bitmap",
        "a cut GIF",
    ],
)
def test_bytes_that_do_not_decode_are_a_corrupt_image(data: bytes) -> None:
    with pytest.raises(CorruptImage, match="an image cannot be read: ") as raised:
        decode_image(data)
    assert " at 0x" not in str(raised.value), "the same bytes give the same reason"


@pytest.mark.parametrize("start", range(0, 2000, 97))
def test_damage_anywhere_is_a_corrupt_image_or_another_picture(start: int) -> None:
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Image.effect_noise((48, 48), 100).convert("RGB").save(buffer, kind)
        data = bytearray(buffer.getvalue())
        for place in range(start % len(data), min(start % len(data) + 40, len(data))):
            data[place] ^= 0xFF
        try:
            assert decode_image(bytes(data)).mode == "RGB"
        except CorruptImage:
            continue


def test_an_error_of_the_caller_is_not_taken_for_a_corrupt_image() -> None:
    with pytest.raises(RuntimeError, match="mine"), open_image(WHOLE):
        raise RuntimeError("mine")


def test_only_the_formats_asked_for_are_opened() -> None:
    with open_image(WHOLE, ("PNG",)) as image:
        assert image.size == (64, 64)
    with pytest.raises(CorruptImage, match="no known image format"), open_image(WHOLE, ("GIF",)):
        pass


def test_a_data_uri_names_the_format() -> None:
    assert data_uri(WHOLE).startswith("data:image/png;base64,")
    with pytest.raises(CorruptImage):
        data_uri(b"no image")


def test_too_many_pixels_are_named_as_the_reason() -> None:
    with pytest.raises(CorruptImage, match="2500000000 pixels"):
        decode_image(png(header(50_000, 50_000), (b"IDAT", zlib.compress(bytes(9)))))
