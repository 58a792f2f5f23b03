"""What the sandbox tests share: pictures, and the processes a sandbox has started."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from toolwise.data import encode_image


def picture(seed: int = 0, size: int = 96) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int = 0) -> bytes:
    return encode_image(picture(seed))


def descendants(pid: int | None = None) -> set[int]:
    """Every process below `pid` (this one) that is not a zombie."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # `pid` ended meanwhile
        for thread in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # this one did
                    state = Path(f"/proc/{child}/stat").read_bytes().rsplit(b")", 1)[1].split()[0]
                    found |= descendants(child) | ({child} if state != b"Z" else set())
    return found


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (held := holds()) and time.monotonic() < deadline:
        pause.wait(0.02)
    return held


def send(what: signal.Signals, processes: set[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # one may take others with it
            os.kill(process, what)
