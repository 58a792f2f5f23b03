"""What the sandbox tests share: pictures, and the processes a sandbox has started."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
from PIL import Image

from toolwise.data import encode_image
from toolwise.tools.sandbox.local import LocalSandbox


def picture(seed: int = 0, size: int = 96) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int = 0) -> bytes:
    return encode_image(picture(seed))


def descendants(pid: int | None = None) -> set[int]:
    """Every process below `pid` (this one) that is not a zombie."""
    found: set[int] = set()
    with contextlib.suppress(psutil.NoSuchProcess):  # `pid` ended meanwhile
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # this one did
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.add(child.pid)
    return found


def processes_of(sandbox: LocalSandbox) -> set[int]:
    """Every process of a sandbox, and nobody else's: a test may kill them."""
    workers = {worker._process.pid for worker in sandbox._workers.values()}
    return workers.union(*map(descendants, workers))


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (held := holds()) and time.monotonic() < deadline:
        pause.wait(0.02)
    return held


def send(what: signal.Signals, processes: set[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # one may take others with it
            os.kill(process, what)
