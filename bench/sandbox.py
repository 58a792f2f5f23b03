"""What the python tool costs: `python -m bench.sandbox`."""

from __future__ import annotations

import asyncio
import os
import statistics
import time

from PIL import Image, ImageDraw

from toolwise.data import encode_image
from toolwise.tools.python import PythonTool

CROP = "show(image.crop((72, 144, 144, 216)).resize((288, 288)))\nprint(image.size)"
BATCH = 200


def sign() -> bytes:
    """A 288x288 picture with a small number on it."""
    image = Image.new("RGB", (288, 288), (120, 140, 110))
    draw = ImageDraw.Draw(image)
    draw.rectangle((72, 144, 143, 215), (230, 220, 200))
    draw.text((90, 170), "47", (20, 20, 40))
    return encode_image(image)


async def new_session_ms(tool: PythonTool, image: bytes) -> float:
    """Median time from nothing to the result of a first call."""
    times: list[float] = []
    for _ in range(50):
        started = time.perf_counter()
        session = await tool.open([image])
        await session.call({"code": "print(1)"})
        times.append(time.perf_counter() - started)
        await session.close()
    return statistics.median(times) * 1000


async def warm_call_ms(tool: PythonTool) -> float:
    """Median time of a further call in a session."""
    session = await tool.open([])
    times: list[float] = []
    for _ in range(200):
        started = time.perf_counter()
        await session.call({"code": "print(1)"})
        times.append(time.perf_counter() - started)
    await session.close()
    return statistics.median(times) * 1000


async def batch_seconds(tool: PythonTool, image: bytes) -> float:
    """Time of `BATCH` sessions at once, one crop-and-show call each."""

    async def one() -> None:
        session = await tool.open([image])
        result = await session.call({"code": CROP})
        assert len(result.images) == 1
        await session.close()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(BATCH)))
    return time.perf_counter() - started


async def measure() -> dict[str, float]:
    """All figures; the batch is the best of three."""
    tool = PythonTool()
    image = sign()
    try:
        return {
            "new_session_ms": await new_session_ms(tool, image),
            "warm_call_ms": await warm_call_ms(tool),
            f"{BATCH}_sessions_s": min([await batch_seconds(tool, image) for _ in range(3)]),
        }
    finally:
        await tool.aclose()


if __name__ == "__main__":
    figures = asyncio.run(measure())
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    for name, figure in figures.items():
        print(f"{name:20} {figure:8.2f}")
