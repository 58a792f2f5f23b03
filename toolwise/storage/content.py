"""What files and directories hold: their digests, and where copies are cached by them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_path(*identity: str) -> Path:
    """Where `TOOLWISE_CACHE` (default `~/.cache/toolwise`) keeps what `identity` determines."""
    root = Path(os.environ.get("TOOLWISE_CACHE") or "~/.cache/toolwise").expanduser()
    return root / hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of the names and bytes of a directory's files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = [f"{p.relative_to(path).as_posix()} {content_digest(p)}" for p in files_in(path)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def files_in(directory: Path) -> list[Path]:
    """All files below a directory, sorted."""
    return sorted(p for p in directory.rglob("*") if p.is_file())
