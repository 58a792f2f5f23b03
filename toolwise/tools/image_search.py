"""The `image_search` tool: what is known about pictures like one of the task's."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from toolwise.errors import BackendError
from toolwise.tools.base import ToolError, ToolResult
from toolwise.tools.search.results import SearchBackend, as_data

IMAGE_SEARCH_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "image_search",
        "description": (
            "Search for pictures like one of the task's; what they are called and where they were "
            "found comes back."
        ),
        "parameters": {
            "type": "object",
            "properties": {
                "image": {
                    "type": "integer",
                    "description": "which of `images`, from 0; the first if it is left out",
                }
            },
            "required": [],
        },
    },
}

THUMBNAIL_SIDE = 448
CONCURRENCY = 16
"""Searches under way at once."""

_LABEL = re.compile(r"images?(?:\[(\d+)\])?|(\d+)")


class ImageSearchTool:
    """Searches for one of the task's pictures; results are marked as data, pictures come small.

    Args:
        backend: what is searched.
        top_k: results a search returns.
    """

    name = "image_search"
    schema = IMAGE_SEARCH_SCHEMA

    def __init__(self, backend: SearchBackend[bytes], top_k: int = 5) -> None:
        self._backend = backend
        self._top_k = top_k
        self.repeatable: bool = getattr(backend, "repeatable", True)
        """Whether the same picture finds the same again, as on the web it does not."""
        self._threads = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="image-search")

    async def open(self, images: Sequence[bytes]) -> ImageSearchSession:
        return ImageSearchSession(self, images)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False)
        self._backend.close()

    async def search(self, image: bytes) -> ToolResult:
        """What is found, as the model reads it; raises `BackendError` where the backend failed."""
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        text, images = await loop.run_in_executor(self._threads, self._search, image)
        return ToolResult(text, images, seconds=time.perf_counter() - started)

    def _search(self, image: bytes) -> tuple[str, tuple[bytes, ...]]:
        found = self._backend.search(image)[: self._top_k]
        return as_data(found), tuple(_thumbnail(hit.image) for hit in found if hit.image)


class ImageSearchSession:
    """The pictures of one trajectory."""

    def __init__(self, tool: ImageSearchTool, images: Sequence[bytes]) -> None:
        self._tool = tool
        self._images = images

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        """Search for the picture that `arguments["image"]` means, the first where nothing is said.

        An index into `images`, or the name `python` has for it (`image`, `images[1]`).
        """
        return await self._tool.search(self._images[self._index(arguments.get("image", 0))])

    async def close(self) -> None:
        """Nothing to give back."""

    def _index(self, image: object) -> int:
        if not self._images:
            raise ToolError("this task has no image to search for")
        label = _LABEL.fullmatch(image.strip()) if isinstance(image, str) else None
        if label:
            image = int(label[1] or label[2] or 0)
        if isinstance(image, bool) or not isinstance(image, int):
            raise ToolError('image_search takes {"image": 0}: which of `images`, from 0')
        if not 0 <= image < len(self._images):
            count = len(self._images)
            raise ToolError(f"there is no image {image}; this task has {count}, counted from 0")
        return image


def _thumbnail(path: Path) -> bytes:
    from toolwise.data import CorruptImage, decode_image, encode_image

    try:
        picture = decode_image(path.read_bytes())
    except (OSError, CorruptImage) as error:
        raise BackendError(f"the found picture {path} cannot be read ({error})") from error
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return encode_image(picture)
