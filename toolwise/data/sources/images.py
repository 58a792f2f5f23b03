"""Pictures of published rows: embedded, as data URIs, or as files beside the data."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from toolwise.errors import InputError


def image_bytes(value: Any, folder: Path) -> bytes:
    """The encoded picture that `value` stands for.

    Args:
        value: bytes, `{"bytes": …}`, `{"path": …}`, a `data:` URI, or a path relative to `folder`.
        folder: where the data file lies; pictures outside it are refused.

    Raises:
        InputError: nothing is there, or it is not to be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InputError("an image is neither bytes nor a path")
    if value.startswith("data:"):
        try:
            return base64.b64decode(value.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise InputError(f"an image's data URI is not base64: {error}") from error
    if "://" in value:
        raise InputError(f"the image {value} is on another machine; put it beside the data")
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"the image {value} lies outside {folder}")
    if not path.is_file():
        raise InputError(f"the image {value} is not there")
    return path.read_bytes()
