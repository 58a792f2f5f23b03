"""Triton's cache of compiled code, with a part that the image brings along.

Triton compiles one module with a C compiler, that of its CUDA driver, when the first kernel runs.
The image `trainer` has it compiled, and no compiler. Triton finds this class by the variable
`TRITON_CACHE_MANAGER`.
"""

from __future__ import annotations

from pathlib import Path

from triton.runtime.cache import FileCacheManager  # pyright: ignore[reportMissingImports]

PREBUILT = Path("/opt/triton")
"""A cache of Triton's, as the image has it."""


class PrebuiltCache(FileCacheManager):
    """The cache in this pod, and behind it that of the image, to which nothing is written."""

    def get_file(self, filename: str) -> str | None:
        """Path of a file of this entry; None where it has yet to be compiled."""
        found = super().get_file(filename)
        brought = PREBUILT / self.key / filename
        return str(brought) if found is None and brought.exists() else found
