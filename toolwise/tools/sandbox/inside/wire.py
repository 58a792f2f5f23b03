"""Frames between host and session: a bounded JSON header, then bounded raw bytes. No pickle."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

LENGTH = struct.Struct("!I")
MAX_ASPECT = 200
"""Of an image's sides; image processors of the Qwen family raise beyond it."""


class WireError(Exception):
    """The other side sent something that is not a frame within the bounds."""


def send(sock: socket.socket, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Write one frame; `blobs` follow the header, their lengths stand in it."""
    data = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    sock.sendall(LENGTH.pack(len(data)) + data)
    for blob in blobs:
        sock.sendall(blob)


def receive(
    sock: socket.socket, max_header: int, max_blobs: int, deadline: float | None = None
) -> tuple[dict[str, Any], list[bytearray]]:
    """Read one frame.

    Args:
        sock: a stream socket.
        max_header: most bytes of JSON taken.
        max_blobs: most bytes taken in all blobs together.
        deadline: `time.monotonic()` value after which `TimeoutError` is raised.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the frame was not complete by `deadline`.
        WireError: it is not a frame, or larger than allowed.
    """
    (length,) = LENGTH.unpack(_exactly(sock, LENGTH.size, deadline))
    if length > max_header:
        raise WireError(f"header of {length} bytes, at most {max_header} are taken")
    try:
        header = json.loads(_exactly(sock, length, deadline))
        lengths = header.pop("blobs")
        if not all(type(length) is int and length >= 0 for length in lengths):
            raise ValueError(f"{lengths!r:.100} are no lengths")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WireError(f"not a frame header: {error}") from None
    if sum(lengths) > max_blobs:
        raise WireError(f"{sum(lengths)} bytes of attachments, at most {max_blobs} are taken")
    return header, [_exactly(sock, size, deadline) for size in lengths]


def _exactly(sock: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            sock.settimeout(remaining)
        count = sock.recv_into(view[done:])
        if count == 0:
            raise EOFError
        done += count
    return data
