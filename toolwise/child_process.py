"""A Python process of one's own, spoken to over a connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection


@contextmanager
def child_process(entry: str, environment: Mapping[str, str]) -> Iterator[Connection]:
    """A new Python process that calls `entry` with the handle of its end of a connection.

    Not `multiprocessing`'s own: that would import the program at hand again. The process is
    waited for when the block ends, and told to end when it ends by an exception. It should also
    end when its connection does, which is how it learns that this process was killed.

    Args:
        entry: `package.module:function`, called as `function(handle)`, which opens
            `multiprocessing.connection.Connection(handle)`.
        environment: variables it gets beside this process's own.
    """
    module, _, function = entry.partition(":")
    ours, theirs = Pipe()
    handle = theirs.fileno()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import {function}; {function}({handle})"],
                pass_fds=[handle],
                env={
                    **os.environ,
                    # What this process can import (an engine factory, say), the other can.
                    "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                    **environment,
                },
                start_new_session=True,  # an interrupt is for this process, which ends the other
            )
        try:
            yield ours
        except BaseException:
            process.terminate()
            raise
        finally:
            ours.close()
            process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on, for a process that is about to start."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
