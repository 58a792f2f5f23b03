"""Run a recorded trajectory's tool calls again, and see whether they give what it says they gave.

A trajectory teaches the model what its tools do. One whose code fails, or whose results somebody
made up, teaches it to trust what no tool ever said.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from toolwise.curation.reproducibility import (
    NETWORK,
    SET_ORDER,
    TWO_RUNS,
    impermanence,
    makes_sets,
    names_used,
    unavailability,
)
from toolwise.curation.verdicts import Verdict
from toolwise.data import CorruptImage, Message, Trajectory, decode_image
from toolwise.tools import Tool, ToolError, ToolResult, ToolSession

RELATIVE_TOLERANCE = 1e-6
"""Between a recorded number and a recomputed one (library versions print floats differently)."""
ABSOLUTE_TOLERANCE = 1e-9
"""The same near zero, where rounding leaves 1e-17 on one machine and 0 on another."""
BLOCK_TOLERANCE = 16
"""Of 255, for the mean of any 8×8 block of an image (JPEG, WebP and resampling lose detail)."""

OUR_TOOLS = ("python", "text_search", "image_search")
NO_TOOL_HERE = "calls a tool this run does not have"

_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ENVELOPE = re.compile(
    r"^\s*Code execution result:\s*stdout:\s*```\n(?P<out>.*?)\n?```\s*"
    r"stderr:\s*```\n(?P<err>.*?)\n?```\s*(?:Images:\s*)?$",
    re.DOTALL,
)
_IMAGES_FOLLOW = re.compile(r"\s*^Processed Images:\s*\Z", re.MULTILINE)
_WEB = re.compile(r"https?://|^## Web Results", re.MULTILINE)
"""In recorded search results: they came from the web, not from a corpus."""
_NUMBERED = re.compile(r"image_\d+")
_NUMBER_IMAGES = """
import base64, io, os
from io import BytesIO
import numpy as np
from PIL import Image
globals().update({f"image_{i}": picture for i, picture in enumerate(images, 1)})
"""
"""What DeepEyesV2 and Metis have ready in a session: the pictures as `image_1`, `image_2`, …"""


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

    A trajectory is dropped where a call fails or gives something else than what is recorded. It is
    set aside where that proves nothing: the output depends on the clock, on chance, on the network,
    on packages or time the sandbox does not have, or differs between two runs of our own.

    Raises:
        BackendError: a tool backend failed, which says nothing about the trajectory.
    """
    calls = list(recorded_calls(trajectory))
    for call in calls:
        if call.name not in tools and call.name not in OUR_TOOLS:
            return Verdict(False, f"no tool named {call.name}")
        if not call.answered:
            return Verdict(False, "a call has no recorded result")
    checked = [call for call in calls if _repeatable(tools.get(call.name))]
    results = await _run(trajectory, checked, tools)
    for position, (call, result) in enumerate(zip(checked, results, strict=False)):
        # Pictures are decoded in a thread, which lets others run; text is sooner compared here.
        differs = asyncio.to_thread(_fault, call, result) if result.images else None
        fault = await differs if differs else _fault(call, result)
        if not fault:
            continue
        nature = _nature(checked[: position + 1], result)
        if not nature and not result.is_error:
            again = await _run(trajectory, checked[: position + 1], tools)
            nature = "" if _same_result(again[-1], result) else TWO_RUNS
        return _aside(nature) if nature else Verdict(False, fault)
    for call in calls:
        if call.name not in tools:
            return _aside(f"{NO_TOOL_HERE}: {call.name}")
        if not _repeatable(tools[call.name]):
            return _aside(NETWORK)
    return Verdict(True)


def _repeatable(tool: Tool | None) -> bool:
    """Whether a tool is here, and answers like calls alike (a live web search does not)."""
    return tool is not None and getattr(tool, "repeatable", True)


def _aside(why: str) -> Verdict:
    return Verdict(False, why, aside=True)


async def _run(
    trajectory: Trajectory, calls: Sequence[RecordedCall], tools: Mapping[str, Tool]
) -> list[ToolResult]:
    """Results of the calls in new sessions, up to and including the first that fails."""
    results: list[ToolResult] = []
    sessions: dict[str, ToolSession] = {}
    try:
        for call in calls:
            try:
                if call.name not in sessions:
                    sessions[call.name] = await tools[call.name].open(trajectory.task.images)
                    if call.name == "python" and _counts_images(calls):
                        await sessions[call.name].call({"code": _NUMBER_IMAGES})
                results.append(await sessions[call.name].call(call.arguments))
            except ToolError as error:
                results.append(ToolResult(str(error), is_error=True))
            if results[-1].is_error:
                break
    finally:
        for session in sessions.values():
            await session.close()
    return results


def _counts_images(calls: Sequence[RecordedCall]) -> bool:
    """Whether code calls the pictures `image_1`, `image_2`, …"""
    return any(map(_NUMBERED.fullmatch, names_used(_codes(calls))))


def _codes(calls: Sequence[RecordedCall]) -> list[str]:
    """The python of some calls."""
    return [str(call.arguments.get("code")) for call in calls if call.name == "python"]


def _nature(calls: Sequence[RecordedCall], result: ToolResult) -> str:
    """Why the last of these calls could not be expected to give the recorded result again."""
    if calls[-1].name != "python":
        return NETWORK if _WEB.search(calls[-1].text) else ""
    if result.is_error:
        return unavailability(result.text)
    codes = _codes(calls)
    if makes_sets(codes) and _words(recorded_output(calls[-1].text)) == _words(result.text):
        return SET_ORDER
    return impermanence(codes)


def _words(text: str) -> Counter[str]:
    """Words and numbers, whatever their order."""
    return Counter(re.findall(r"[\w.]+", text))


def _fault(call: RecordedCall, result: ToolResult) -> str:
    if result.is_error:
        return "the call fails"
    if not same_text(recorded_output(call.text), result.text):
        return "the result differs: text"
    if len(call.images) != len(result.images):
        return "the result differs: number of images"
    if not all(map(same_image, call.images, result.images)):
        return "the result differs: image"
    return ""


def _same_result(a: ToolResult, b: ToolResult) -> bool:
    return (a.text, a.images, a.is_error) == (b.text, b.images, b.is_error)


def recorded_output(text: str) -> str:
    """What the code printed, out of the frame DeepEyesV2 and Metis put around it."""
    framed = _ENVELOPE.match(text)
    if framed:
        return f"{framed['out']}\n{framed['err']}".strip()
    return _IMAGES_FOLLOW.sub("", text)


def same_text(recorded: str, computed: str) -> bool:
    """Equal but for runs of white space, terminal colours, addresses and digits past the sixth.

    Whole numbers written as such on both sides must be equal.
    """
    pair = [_ADDRESS.sub("at", _COLOURS.sub("", text)) for text in (recorded, computed)]
    numbers = [_NUMBER.findall(text) for text in pair]
    words = [" ".join(_NUMBER.sub("#", text).split()) for text in pair]
    return (
        words[0] == words[1]
        and len(numbers[0]) == len(numbers[1])
        and all(map(_same_number, *numbers))
    )


def _same_number(a: str, b: str) -> bool:
    if a == b:
        return True
    if a.lstrip("+-").isdigit() and b.lstrip("+-").isdigit():
        return int(a) == int(b)
    return math.isclose(float(a), float(b), rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)


def same_image(recorded: bytes, computed: bytes) -> bool:
    """Equal in size and content, but for what re-encoding loses.

    Content is compared as the means of 8×8 blocks: compression moves single pixels by a lot (JPEG
    halves the resolution of colours) and hardly moves these.
    """
    try:
        a, b = decode_image(recorded), decode_image(computed)
    except CorruptImage:
        return False
    if a.size != b.size:
        return False
    blocks = [np.asarray(image.reduce(8), np.int16) for image in (a, b)]
    return int(np.abs(blocks[0] - blocks[1]).max()) <= BLOCK_TOLERANCE


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
