"""One session: the process in which a trajectory's code runs, call after call."""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import signal
import socket
import traceback
from typing import Any

from PIL import Image

from . import wire

MAX_REQUEST = 1 << 30
TRACEBACK_CHARS = 2000


def serve(sock: socket.socket, limits: dict[str, Any]) -> None:
    """Answer calls until the host hangs up; before the first come the task's images."""
    me = os.getpid()
    screen = Screen(limits["images"], limits["pixels"])
    wire.send(sock, {"ready": True})
    with contextlib.suppress(EOFError):
        variables = first_variables(*wire.receive(sock, MAX_REQUEST, MAX_REQUEST), screen)
        while True:
            request, _ = wire.receive(sock, MAX_REQUEST, 0)
            printed = Printed(limits["text_chars"])
            screen.shown.clear()
            error = run(request["code"], f"<call {request['call']}>", variables, printed)
            if os.getpid() != me:
                os._exit(0)  # the code forked and came back here
            if me == 1:
                end_leftovers()
            reply = {"call": request["call"], "text": printed.text(), "error": error}
            sizes = [size for size, _ in screen.shown]
            wire.send(sock, {**reply, "sizes": sizes}, [pixels for _, pixels in screen.shown])


def refuse(sock: socket.socket, error: Exception) -> None:
    """In place of the greeting: why there is no session."""
    with contextlib.suppress(OSError):  # the host may have hung up
        wire.send(sock, {"refused": str(error)})


def first_variables(
    header: dict[str, Any], pixels: list[bytearray], screen: Screen
) -> dict[str, Any]:
    """What the code finds at its first call."""
    images = [
        Image.frombytes("RGB", size, data)
        for size, data in zip(header["sizes"], pixels, strict=True)
    ]
    return {
        "__name__": "__main__",
        "images": images,
        "image": images[0] if images else None,
        "show": screen.show,
    }


def rehearse(limits: dict[str, Any]) -> None:
    """Run a call that shows and one that fails, so that forks find imported what they need."""
    screen = Screen(limits["images"], limits["pixels"])
    variables = first_variables({"sizes": [(2, 2)]}, [bytearray(12)], screen)
    for code in ("show(image.crop((0, 0, 1, 1)).resize((2, 2)))", "1 / 0"):
        run(code, "<call 0>", variables, Printed(limits["text_chars"]))


def run(code: str, name: str, variables: dict[str, Any], printed: io.TextIOBase) -> str | None:
    """Run one call's code; the end of its traceback where it failed, else None."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(compile(code, name, "exec"), variables)
    except MemoryError:
        return "MemoryError: the code needs more memory than it may have"
    except SystemExit as stop:
        return None if stop.code in (None, 0) else f"SystemExit: {stop.code}"
    except BaseException as error:
        return described(error, name)
    return None


def described(error: BaseException, name: str) -> str:
    """The end of a traceback, from the model's own code on (the frames above are ours)."""
    try:
        frames = error.__traceback__
        while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<call "):
            frames = frames.tb_next
        text = "".join(traceback.format_exception(type(error), error, frames, limit=-5)).strip()
    except BaseException:  # exceptions may have a hostile __str__
        text = f"{type(error).__name__} in {name}"
    return text if len(text) <= TRACEBACK_CHARS else f"…{text[-TRACEBACK_CHARS:]}"


def end_leftovers() -> None:
    """What a call started ends with it: kill every other process of this pid namespace."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


class Printed(io.TextIOBase):
    """Keeps the first `limit` characters written and counts the rest."""

    def __init__(self, limit: int) -> None:
        self._kept: list[str] = []
        self._room = limit
        self._dropped = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        kept = text[: self._room]
        if kept:
            self._kept.append(kept)
            self._room -= len(kept)
        self._dropped += len(text) - len(kept)
        return len(text)

    def text(self) -> str:
        note = f"\n[{self._dropped} more characters not shown]" if self._dropped else ""
        return "".join(self._kept) + note


class Screen:
    """What the model looks at: images handed to `show` during one call."""

    def __init__(self, most: int, pixels: int) -> None:
        self.shown: list[tuple[tuple[int, int], bytes]] = []
        self._most = most
        self._pixels = pixels

    def show(self, picture: Any) -> None:
        """Show a PIL image, or an array, to the model."""
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        if len(self.shown) == self._most:
            raise ValueError(f"a call can show at most {self._most} images")
        room = self._pixels - sum(width * height for (width, height), _ in self.shown)
        if not 0 < image.width * image.height <= room:
            raise ValueError(
                f"an image of {image.width}x{image.height} can't be shown: it must have between 1 "
                f"and {room} pixels, what is left of {self._pixels} for the images of a call; "
                "resize it first"
            )
        if max(image.size) > wire.MAX_ASPECT * min(image.size):
            raise ValueError(
                f"an image of {image.width}x{image.height} can't be shown: its longer side must "
                f"be at most {wire.MAX_ASPECT} times the shorter; crop or resize it first"
            )
        self.shown.append((image.size, image.convert("RGB").tobytes()))
