"""The python sandbox beside a Jupyter kernel per session, and ten thousand calls in a row.

Both start a session with a task's image, run a first call that shows a crop of it, then warm calls.
The two take turns within each round, so that a busy machine slows both.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from PIL import Image

from toolwise.data import encode_image
from toolwise.tools.python import PythonTool
from toolwise.tools.sandbox.local import LocalSandbox

SCENE = encode_image(Image.effect_noise((288, 288), 64).convert("RGB"))
CROP = "show(image.crop((96, 0, 192, 96)))"
SUM = "print(347 + 586)"
ROUNDS = 9
NEW_SESSIONS = 20
WARM_CALLS = 300
"""Of a round: ours start many sessions beside each kernel, for they are so much shorter."""
CALLS_PER_SESSION = 5
SETTLED = 300
"""Calls after which a pool holds what it is going to hold."""


def measure() -> dict[str, float]:
    """Milliseconds per session and call of both, and what the soak leaves behind."""
    ours, kernels = Timings([], []), Timings([], [])
    sandbox = LocalSandbox(workers=1)
    sandbox.open([]).call("1")
    for _ in range(ROUNDS):
        _time_sandbox(sandbox, ours)
        _time_kernel(kernels)
    sandbox.close()
    pairs = zip(ours.sessions[:: len(ours.sessions) // ROUNDS], kernels.sessions, strict=False)
    return {
        **ours.figures("sandbox"),
        **kernels.figures("jupyter"),
        "new_session_jupyter_over_sandbox": statistics.median(them / us for us, them in pairs),
        "sessions_200_seconds": asyncio.run(_two_hundred_sessions()),
        **{f"soak_{name}": value for name, value in soak(10_000)._asdict().items()},
    }


class Timings(NamedTuple):
    """Milliseconds of each new session with its first call, and of each warm call."""

    sessions: list[float]
    calls: list[float]

    def figures(self, name: str) -> dict[str, float]:
        return {
            f"{name}_new_session_with_first_call_ms_p50": statistics.median(self.sessions),
            f"{name}_warm_call_ms_p50": statistics.median(self.calls),
            f"{name}_warm_call_ms_p99": _p99(self.calls),
        }


def _time_sandbox(sandbox: LocalSandbox, timings: Timings) -> None:
    for _ in range(NEW_SESSIONS):
        session = sandbox.open([SCENE])
        timings.sessions.append(_milliseconds(session.call, CROP))
        session.close()
    session = sandbox.open([SCENE])
    session.call(SUM)
    timings.calls.extend(_milliseconds(session.call, SUM) for _ in range(WARM_CALLS))
    session.close()


def _time_kernel(timings: Timings) -> None:
    """A kernel of its own for the session, as the reference implementation of HDPO has it."""
    from jupyter_client.manager import KernelManager

    prepare = (
        "import base64, io\nfrom PIL import Image\nfrom IPython.display import display as show\n"
        f"image = Image.open(io.BytesIO(base64.b64decode({base64.b64encode(SCENE)!r})))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder
        manager = KernelManager(transport="ipc", connection_file=f"{folder}/kernel.json")

        started = time.perf_counter()
        manager.start_kernel(extra_arguments=["--HistoryManager.enabled=False"])
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=120)
        outputs = _executed(client, prepare + CROP)
        timings.sessions.append(1e3 * (time.perf_counter() - started))
        if not outputs or "image/png" not in outputs[-1].get("data", {}):
            sys.exit(f"the Jupyter kernel showed no image: {outputs}")
        _executed(client, SUM)
        timings.calls.extend(_milliseconds(_executed, client, SUM) for _ in range(100))
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def _executed(client: Any, code: str) -> list[dict[str, Any]]:
    """What a kernel puts out for a piece of code."""
    outputs: list[dict[str, Any]] = []

    def keep(message: dict[str, Any]) -> None:
        if message["msg_type"] in ("stream", "display_data", "error"):
            outputs.append(message["content"])

    client.execute_interactive(code, timeout=120, output_hook=keep)
    return outputs


async def _two_hundred_sessions() -> float:
    """Seconds a training step's worth of sessions takes, one call each."""
    tool = PythonTool()

    async def one() -> None:
        session = await tool.open([SCENE])
        await session.call({"code": CROP})
        await session.close()

    await one()
    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(200)))
    seconds = time.perf_counter() - started
    await tool.aclose()
    return seconds


class Soak(NamedTuple):
    """A long run of calls: how fast they were, and how much more was held after it than before."""

    calls: int
    call_ms_p50: float
    call_ms_p99: float
    session_ms_p50: float
    memory_growth_mb: float
    processes_left: int
    descriptors_left: int
    files_left: int


class Held(NamedTuple):
    """What this process and all it has started hold: memory, processes and handles.

    Of the memory what is no file's: other programs' end makes a file's pages weigh more on those
    who still map it.
    """

    megabytes: float
    processes: int
    descriptors: int
    files: int

    @staticmethod
    def by_us(folder: Path) -> Held:
        """With the files of a folder."""
        gc.collect()
        us = psutil.Process()
        memory, handles = [], []
        for one in [us, *us.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):  # it ended
                memory.append(_allocated_bytes(one.pid))
                handles.append(one.num_fds())
        files = len(list(folder.rglob("*")))
        return Held(sum(memory) / 1e6, len(handles), sum(handles), files)


def _allocated_bytes(pid: int) -> int:
    """A process's proportional share (PSS) of the memory that no file stands behind."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[-2]) for line in lines[1:]}
    return 1024 * (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"])


def soak(calls: int, workers: int = 4) -> Soak:
    """Make calls in a row over a pool, a new session after every few, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        usual, tempfile.tempdir = tempfile.tempdir, name
        try:
            return _soak(calls, workers, Path(name))
        finally:
            tempfile.tempdir = usual


def _soak(calls: int, workers: int, folder: Path) -> Soak:
    sandbox = LocalSandbox(workers=workers)
    _work(sandbox, SETTLED)
    before = Held.by_us(folder)
    timings = _work(sandbox, calls)
    after = Held.by_us(folder)
    deadline = time.monotonic() + 10.0
    while after.processes > before.processes and time.monotonic() < deadline:
        after = Held.by_us(folder)  # the last session is on its way out
    sandbox.close()
    return Soak(
        calls,
        statistics.median(timings.calls),
        _p99(timings.calls),
        statistics.median(timings.sessions),
        after.megabytes - before.megabytes,
        *(now - then for now, then in zip(after[1:], before[1:], strict=True)),
    )


def _work(sandbox: LocalSandbox, calls: int) -> Timings:
    timings = Timings([], [])
    for _ in range(calls // CALLS_PER_SESSION):
        session = sandbox.open([SCENE])
        timings.sessions.append(_milliseconds(session.call, CROP))
        for number in range(CALLS_PER_SESSION - 1):
            code = f"x = {number}; open('/tmp/note', 'a').write('x'); print(x)"
            timings.calls.append(_milliseconds(session.call, code))
        session.close()
    return timings


def _milliseconds(work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return 1e3 * (time.perf_counter() - started)


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
