"""Writing files and directories that are there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolwise.errors import InputError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well, and vanishes otherwise."""
    final = Path(path).absolute()
    with _room(final) as room:
        partial = room / final.name
        yield partial
        _fsync(partial)
        partial.replace(final)
        _fsync(final.parent)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """An empty directory to fill; it replaces `path` when the block ends well, else vanishes."""
    final = Path(path).absolute()
    with _room(final) as room:
        partial = room / final.name
        partial.mkdir()
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if final.exists():
            final.rename(room / "replaced")
        partial.rename(final)
        _fsync(final.parent)


@contextmanager
def sole_writer(path: str | Path) -> Iterator[None]:
    """Have one process at a time make what will stand at `path`; the others wait for it.

    A second copy would replace the first one under those that read it, so a writer looks again
    inside the block whether `path` is there by now.
    """
    final = Path(path).absolute()
    if final.exists():
        yield
        return
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = final.with_name(f".{final.name}.lock").open("w")
    except OSError as error:
        raise InputError(f"{final.parent} cannot be written to: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _room(final: Path) -> Iterator[Path]:
    """A temporary directory beside `final`, locked so that only a dead writer's is cleaned away."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean_stale_rooms(final)
        room, lock = _locked_room(final)
    except OSError as error:
        raise InputError(f"{final.parent} cannot be written to: {error.strerror}") from error
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        os.close(lock)


def _locked_room(final: Path) -> tuple[Path, int]:
    while True:
        room = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
        # Between mkdtemp and flock another writer may take the room for a stale one.
        with suppress(FileNotFoundError):
            lock = os.open(room, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if room.exists():
                return room, lock
            os.close(lock)


def _clean_stale_rooms(final: Path) -> None:
    for room in final.parent.glob(f".{final.name}.*.partial"):
        with suppress(FileNotFoundError):
            lock = os.open(room, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(room, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(lock)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
