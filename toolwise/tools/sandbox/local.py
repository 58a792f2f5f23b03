"""Sandboxes on this machine: a few warm supervisors that fork a session per trajectory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from PIL import Image

from toolwise.data import CorruptImage, decode_image, encode_image
from toolwise.errors import BackendError, InputError
from toolwise.tools.base import ToolResult
from toolwise.tools.output import plain_text
from toolwise.tools.sandbox import bubblewrap
from toolwise.tools.sandbox.contract import DEFAULT_LIMITS, Isolation, SandboxLimits
from toolwise.tools.sandbox.inside import wire

START_SECONDS = 60.0
TRACEBACK_CHARS = 2000
CALLS_PER_WORKER = 4
"""Calls a worker runs at once: enough that one endless loop does not hold up the rest."""
RESTARTED = "python was restarted, its variables are gone"


Modules = tuple[str, ...]


class Process(NamedTuple):
    """A session's process: where it runs, its name there, our end of its socket."""

    worker: Worker
    name: str
    sock: socket.socket


class LocalSandbox:
    """A pool of `workers` sandboxes; a worker that dies is replaced.

    Raises:
        BackendError: bubblewrap is not installed, or can't start here (on first use).
    """

    def __init__(
        self,
        isolation: Isolation = Isolation.BUBBLEWRAP,
        workers: int = 2,
        limits: SandboxLimits = DEFAULT_LIMITS,
    ) -> None:
        self.isolation = isolation
        self.concurrency = workers * CALLS_PER_WORKER
        self._limits = limits
        self._lock = threading.Lock()
        self._turn = itertools.cycle(range(workers))
        # `bwrap --die-with-parent` dies with the *thread* that started it: this one lasts.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        self._workers: dict[tuple[int, Modules], Worker] = {}
        self._closed = False
        for _ in range(workers):
            self.worker(())

    def open(self, images: Sequence[bytes]) -> LocalSession:
        return LocalSession(self, images, self._limits)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for worker in self._workers.values():
                worker.close()
        self._starter.shutdown()

    def worker(self, modules: Modules) -> Worker:
        """The worker whose turn it is among those that have imported `modules`.

        One that died is replaced; one for new modules is started by the first who asks.

        Raises:
            BackendError: the sandbox is closed, or a worker can't be started.
        """
        with self._lock:
            if self._closed:
                raise BackendError("the python sandbox is closed")
            place = next(self._turn), modules
            worker = self._workers.get(place)
            if worker is None or not worker.alive:
                if worker is not None:
                    worker.close()
                starting = self._starter.submit(Worker, self.isolation, self._limits, modules)
                worker = self._workers[place] = starting.result()
            return worker


class Worker:
    """One supervisor process, in bubblewrap or bare, that has imported `modules` beside PIL."""

    def __init__(self, isolation: Isolation, limits: SandboxLimits, modules: Modules) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bare = isolation is Isolation.NONE
        python = [sys.executable] if bare else bubblewrap.command()
        how = "bare" if bare else "isolated"
        arguments = [str(theirs.fileno()), json.dumps(asdict(limits)), how, *modules]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker)
        with theirs:
            self._process = subprocess.Popen(
                [*python, "-m", "inside.supervisor", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=bubblewrap.bare_environment() if bare else None,
                start_new_session=bare,
            )
        self._control = ours
        self._control.settimeout(START_SECONDS)
        self._lock = threading.Lock()
        self._names = itertools.count()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self) -> tuple[str, socket.socket]:
        """Ask for a session: its name and our end of its socket, which may be written to at once.

        Raises:
            BackendError: the supervisor is gone.
        """
        ours, theirs = socket.socketpair()
        ours.settimeout(START_SECONDS)
        try:
            with self._lock, theirs:
                name = str(next(self._names))
                socket.send_fds(self._control, [f"start {name}".encode()], [theirs.fileno()])
        except OSError:
            ours.close()
            raise self.failure() from None
        return name, ours

    def await_greeting(self, sock: socket.socket) -> None:
        """Wait until a session has started.

        Raises:
            EOFError: it ended first, or the worker did (see `check`).
            BackendError: the supervisor could not start it, or does not answer and is killed.
        """
        try:
            header, _ = wire.receive(sock, 1000, 0, time.monotonic() + START_SECONDS)
        except ConnectionError:
            raise EOFError from None
        except (OSError, wire.WireError):
            raise self.failure() from None
        match header:
            case {"ready": True}:
                return
            case {"refused": str(reason)}:
                raise BackendError(f"the python sandbox can't start a session: {reason}")
            case _:
                raise self.failure()

    def check(self) -> None:
        """Start a session and end it.

        Raises:
            BackendError: that fails; the worker is killed unless it said why.
        """
        name, sock = self.start()
        with sock:
            try:
                self.await_greeting(sock)
            except EOFError:
                raise self.failure() from None
        self.end(name)

    def end(self, name: str) -> None:
        """Kill a session and everything it started; nothing happens where it is gone already."""
        with self._lock, contextlib.suppress(OSError):
            self._control.send(f"end {name}".encode())

    def failure(self) -> BackendError:
        """Kill the worker; the error that says what it had to say."""
        self.close()
        self._log.seek(0)
        said = self._log.read()[-2000:].decode(errors="replace").strip() or "nothing"
        return BackendError(
            f"the python sandbox does not work here (exit status {self._process.returncode}); "
            f"its last words: {said}"
        )

    def close(self) -> None:
        with self._lock:
            self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)  # a healthy supervisor ends by itself, and its sessions with it
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class LocalSession:
    """One trajectory's python process, started by its first call."""

    def __init__(
        self, sandbox: LocalSandbox, images: Sequence[bytes], limits: SandboxLimits
    ) -> None:
        self._sandbox = sandbox
        self._images = list(images)
        self._limits = limits
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._calls = 0
        self._closed = False

    def call(self, code: str) -> ToolResult:
        """Run code.

        Raises:
            BackendError: no session can be started, or the worker died while the code ran. That
                code may be why, so no other worker runs it.
            InputError: an image of the task can't be decoded.
        """
        with self._lock:
            started = time.perf_counter()
            try:
                result = self._attempt(code)
            finally:
                if self._closed:
                    self._discard()
            return replace(result, seconds=time.perf_counter() - started)

    def close(self) -> None:
        self._closed = True
        process = self._process
        if process is not None:
            process.worker.end(process.name)  # a call under way ends with its process
        if self._lock.acquire(blocking=False):
            self._discard()
            self._lock.release()

    def _attempt(self, code: str) -> ToolResult:
        self._check_open()
        process = self._process or self._started(code)
        self._check_open()
        self._calls += 1
        deadline = time.monotonic() + self._limits.seconds
        try:
            process.sock.settimeout(self._limits.seconds)
            with contextlib.suppress(OSError):  # what follows finds out why
                wire.send(process.sock, {"call": self._calls, "code": code})
            header, blobs = wire.receive(process.sock, *self._reply_bounds, deadline)
            return self._result(header, blobs)
        except TimeoutError:
            self._discard()
            return _failed(f"timed out after {self._limits.seconds:g} s", RESTARTED)
        except wire.WireError as error:
            self._discard()
            return _failed(f"python sent a reply that is none ({error})", RESTARTED)
        except (EOFError, OSError):
            self._discard()
            if not self._closed:
                process.worker.check()  # healthy, so the code is to blame
            return _failed("the python process was killed (too much memory?) or exited", RESTARTED)

    def _started(self, code: str) -> Process:
        """A process that waits for a first call; where one worker can't start it, the next does."""
        try:
            return self._start(code)
        except BackendError:
            self._check_open()
            return self._start(code)

    def _start(self, code: str) -> Process:
        images = [_pixels(image) for image in self._images]
        worker = self._sandbox.worker(modules_for(code))
        process = self._process = Process(worker, *worker.start())
        try:
            with contextlib.suppress(OSError):  # waiting for the greeting finds out why
                sizes = [size for size, _ in images]
                wire.send(process.sock, {"sizes": sizes}, [pixels for _, pixels in images])
            worker.await_greeting(process.sock)
        except BackendError:
            self._discard()
            raise
        except EOFError:
            self._discard()
            self._check_open()
            worker.check()
            raise BackendError("a python session ended while it started") from None
        return process

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the python session was closed while a call was waiting")

    def _discard(self) -> None:
        if self._process is not None:
            self._process.worker.end(self._process.name)
            self._process.sock.close()
            self._process = None

    @property
    def _reply_bounds(self) -> tuple[int, int]:
        most_characters = self._limits.text_chars + 2 * TRACEBACK_CHARS
        return 12 * most_characters + 4096, 3 * self._limits.pixels

    def _result(self, header: dict[str, Any], blobs: list[bytearray]) -> ToolResult:
        """Check a reply, which the model's code may have forged, and encode its images."""
        match header:
            case {"call": self._calls, "text": str(text), "error": None | str() as error}:
                sizes = header.get("sizes")
            case _:
                raise wire.WireError("fields are missing")
        if error == "":
            raise wire.WireError("an error says nothing")
        images = _encoded(sizes, blobs, self._limits)
        if error:
            text = f"{text.rstrip()}\n{error}".lstrip()
        # The chat template ends a tool's response with a line break of its own.
        text = plain_text(text.rstrip("\n"), self._limits.text_chars + 2 * TRACEBACK_CHARS)
        return ToolResult(text, images, is_error=error is not None)


def modules_for(code: str) -> Modules:
    """What is worth having imported before a session that begins with `code`.

    numpy takes 0.1 s to import, and every fork of a process that holds it 2 ms more.
    """
    return ("numpy",) if "numpy" in code else ()


def _encoded(sizes: Any, blobs: list[bytearray], limits: SandboxLimits) -> tuple[bytes, ...]:
    """Raw RGB pixels to PNG: no format the sandbox chose is ever parsed by the host."""
    if not isinstance(sizes, list) or len(sizes) != len(blobs) or len(blobs) > limits.images:
        raise wire.WireError("sizes and images differ")
    images: list[bytes] = []
    for size, pixels in zip(sizes, blobs, strict=True):
        match size:
            case [int(width), int(height)] if width > 0 and height > 0:
                if width * height * 3 != len(pixels):
                    raise wire.WireError("an image is not the size it claims")
                if max(size) > wire.MAX_ASPECT * min(size):
                    raise wire.WireError("an image is too long for its width")
                images.append(encode_image(Image.frombytes("RGB", (width, height), pixels)))
            case _:
                raise wire.WireError("an image has no size")
    return tuple(images)


@functools.lru_cache(maxsize=4)  # the rollouts of a group follow each other with one image
def _pixels(image: bytes) -> tuple[tuple[int, int], bytes]:
    try:
        decoded = decode_image(image)
    except CorruptImage as error:
        raise InputError(f"an image of the task can't be decoded: {error.reason}") from error
    return decoded.size, decoded.tobytes()


def _failed(what: str, consequence: str) -> ToolResult:
    return ToolResult(f"Error: {what}; {consequence}", is_error=True)
