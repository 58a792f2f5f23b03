"""Pictures of published rows: embedded, or as files in folders and zip archives beside the data."""

from __future__ import annotations

import base64
import binascii
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolwise.data.image import open_image
from toolwise.errors import InputError

MAX_BYTES = 128 * 2**20
"""Of one encoded picture; an archive may claim any size."""

_BASE64_STARTS = ("/9j/", "iVBOR", "R0lGOD", "UklGR")
"""JPEG, PNG, GIF and WebP in base64; a JPEG's looks like an absolute path."""


class Pictures:
    """Finds the pictures a data set speaks of; archives are opened when one is first needed.

    Args:
        root: folder of the data set; nothing outside it is read.
        apart: folder or zip archive that holds the pictures where they lie elsewhere.
    """

    def __init__(self, root: Path, apart: Path | None = None) -> None:
        self._root = root
        self._apart = apart
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._archives_of: dict[Path, list[Path]] = {}

    def read(self, value: Any, folder: Path) -> bytes:
        """The encoded picture that `value` stands for, exactly as it came, decoded once to check.

        Args:
            value: bytes, base64, a `data:` URI, `{"bytes": …}`, `{"path": …}`, `{"url": …}`, or a
                path relative to `folder`, to a folder above it, or to a zip archive in one of them.
            folder: where the data file lies.

        Raises:
            InputError: nothing is there, or it is no picture.
        """
        return checked(self._bytes(value, folder))

    def close(self) -> None:
        """Close the archives."""
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()

    def _bytes(self, value: Any, folder: Path) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path") or value.get("url")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise InputError("an image is neither bytes nor a path")
        if value.startswith(("data:", *_BASE64_STARTS)):
            return _decoded(value.partition(",")[2] if value.startswith("data:") else value)
        if "://" in value:
            raise InputError(f"the image {value} is on another machine; put it beside the data")
        return self._beside(value, folder)

    def _beside(self, value: str, folder: Path) -> bytes:
        name = os.path.normpath(value)
        if Path(name).is_absolute() or name.startswith(".."):
            raise InputError(f"the image {value} lies outside {self._root}")
        for place in self._places(folder):
            # Not resolved: the Hub's cache is made of links that lead out of the data set's folder.
            if (place / name).is_file():
                return _read(place / name)
            for archive in self._archives_in(place):
                found = self._unzipped(archive, name)
                if found is not None:
                    return found
        raise InputError(f"the image {value} is not there, nor in a zip archive beside the data")

    def _places(self, folder: Path) -> Iterator[Path]:
        """Where a relative path may start: the file's folder, those above it, and `apart`."""
        yield folder
        while folder != self._root and self._root in folder.parents:
            folder = folder.parent
            yield folder
        if self._apart is not None:
            yield self._apart

    def _archives_in(self, place: Path) -> list[Path]:
        if place not in self._archives_of:
            found = [place] if place.is_file() else sorted(place.glob("*.zip"))
            self._archives_of[place] = found
        return self._archives_of[place]

    def _unzipped(self, path: Path, name: str) -> bytes | None:
        """A member, named with or without the archive's own name as its first folder."""
        try:
            if path not in self._archives:
                self._archives[path] = zipfile.ZipFile(path)
            archive = self._archives[path]
            for member in (name, name.removeprefix(f"{path.stem}/"), f"{path.stem}/{name}"):
                try:
                    info = archive.getinfo(member)
                except KeyError:
                    continue
                if info.file_size > MAX_BYTES:
                    raise InputError(f"{path}: {member} has more than {MAX_BYTES} bytes")
                return archive.read(info)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return None


def checked(image: bytes) -> bytes:
    """The bytes themselves; raises `InputError` where they are too many, or no picture."""
    if len(image) > MAX_BYTES:
        raise InputError(f"an image has more than {MAX_BYTES} bytes")
    with open_image(image) as picture:
        picture.load()
    return image


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES} bytes")
    return path.read_bytes()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InputError(f"an image is not base64: {error}") from error
