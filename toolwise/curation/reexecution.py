"""Run a recorded trajectory's tool calls again, and see whether they give what it says they gave.

A trajectory teaches the model what its tools do. One whose code fails, or whose results somebody
made up, teaches it to trust what no tool ever said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from toolwise.curation.verdicts import Verdict
from toolwise.data import Message, Trajectory, decode_image
from toolwise.tools import Tool, ToolError, ToolResult, ToolSession

RELATIVE_TOLERANCE = 1e-6
"""Between a recorded number and a recomputed one (library versions print floats differently)."""
PIXEL_TOLERANCE = 2
"""Of 255, for any pixel of a losslessly recorded image (resampling rounds differently)."""
JPEG_BLOCK_TOLERANCE = 16
"""Of 255, for the mean of any 8×8 block of an image that was recorded as JPEG."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class RecordedCall(NamedTuple):
    """One call of a recorded trajectory with the result it claims (None: there is none)."""

    name: str
    arguments: dict[str, Any]
    text: str
    images: tuple[bytes, ...]
    answered: bool


def recorded_calls(trajectory: Trajectory) -> Iterator[RecordedCall]:
    """The calls in order, each with its `tool` message (by `tool_call_id`)."""
    results = {
        message.get("tool_call_id"): message
        for message in trajectory.messages
        if message["role"] == "tool"
    }
    for message in trajectory.messages:
        for call in message.get("tool_calls") or ():
            result = results.get(call["id"])
            yield RecordedCall(
                call["function"]["name"],
                call["function"]["arguments"],
                message_text(result or {}),
                _message_images(result or {}),
                result is not None,
            )


async def reexecute(trajectory: Trajectory, tools: Mapping[str, Tool]) -> Verdict:
    """Run every call again in the trajectory's own session.

    Raises:
        BackendError: a tool backend failed, which says nothing about the trajectory.
    """
    sessions: dict[str, ToolSession] = {}
    try:
        for call in recorded_calls(trajectory):
            if call.name not in tools:
                return Verdict(False, f"no tool named {call.name}")
            if not call.answered:
                return Verdict(False, "a call has no recorded result")
            try:
                if call.name not in sessions:
                    sessions[call.name] = await tools[call.name].open(trajectory.task.images)
                result = await sessions[call.name].call(call.arguments)
            except ToolError:
                return Verdict(False, "the call fails")
            if result.is_error:
                return Verdict(False, "the call fails")
            difference = _difference(call, result)
            if difference:
                return Verdict(False, difference)
    finally:
        for session in sessions.values():
            await session.close()
    return Verdict(True)


def _difference(call: RecordedCall, result: ToolResult) -> str:
    if not same_text(call.text, result.text):
        return "the result differs: text"
    if len(call.images) != len(result.images):
        return "the result differs: number of images"
    if not all(map(same_image, call.images, result.images)):
        return "the result differs: image"
    return ""


def same_text(recorded: str, computed: str) -> bool:
    """Equal but for runs of white space and the last digits of numbers."""
    numbers = [_NUMBER.findall(text) for text in (recorded, computed)]
    words = [" ".join(_NUMBER.sub("#", text).split()) for text in (recorded, computed)]
    return (
        words[0] == words[1]
        and len(numbers[0]) == len(numbers[1])
        and all(
            a == b or math.isclose(float(a), float(b), rel_tol=RELATIVE_TOLERANCE)
            for a, b in zip(*numbers, strict=True)
        )
    )


def same_image(recorded: bytes, computed: bytes) -> bool:
    """Equal in size and content; a JPEG recording may differ by what its compression loses."""
    try:
        a, b = decode_image(recorded), decode_image(computed)
    except (OSError, ValueError):
        return False
    if a.size != b.size:
        return False
    if recorded.startswith(b"\xff\xd8"):
        return _largest_difference(a.reduce(8), b.reduce(8)) <= JPEG_BLOCK_TOLERANCE
    return _largest_difference(a, b) <= PIXEL_TOLERANCE


def _largest_difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def message_text(message: Message) -> str:
    """The text of a message, whether it is a string or parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _message_images(message: Message) -> tuple[bytes, ...]:
    content = message.get("content") or ""
    if isinstance(content, str):
        return ()
    return tuple(part["image"] for part in content if part["type"] == "image")
