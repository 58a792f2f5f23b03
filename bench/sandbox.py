"""The python sandbox: a new session, a warm call, and a training step's worth of sessions."""

from __future__ import annotations

import asyncio
import statistics
import time

from PIL import Image

from toolwise.data import encode_image
from toolwise.tools import ToolSession
from toolwise.tools.python import PythonTool

SCENE = encode_image(Image.effect_noise((288, 288), 64).convert("RGB"))
CROP = {"code": "show(image.crop((96, 0, 192, 96)))"}


def measure() -> dict[str, float]:
    """Milliseconds per session and call, seconds for 200 sessions of one call each."""
    tool = PythonTool()
    try:
        return asyncio.run(_measure(tool))
    finally:
        asyncio.run(tool.aclose())


async def _measure(tool: PythonTool) -> dict[str, float]:
    async def first_call() -> tuple[ToolSession, float]:
        session = await tool.open([SCENE])
        started = time.perf_counter()
        await session.call(CROP)
        return session, 1e3 * (time.perf_counter() - started)

    warm_up, _ = await first_call()
    await warm_up.close()
    new = []
    for _ in range(50):
        session, milliseconds = await first_call()
        new.append(milliseconds)
        await session.close()
    session, _ = await first_call()
    warm = []
    for _ in range(300):
        started = time.perf_counter()
        await session.call({"code": "print(347 + 586)"})
        warm.append(1e3 * (time.perf_counter() - started))
    await session.close()

    async def one() -> None:
        opened, _ = await first_call()
        await opened.close()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(200)))
    return {
        "new_session_with_first_call_ms_p50": statistics.median(new),
        "warm_call_ms_p50": statistics.median(warm),
        "warm_call_ms_p99": statistics.quantiles(warm, n=100)[98],
        "sessions_200_seconds": time.perf_counter() - started,
    }
