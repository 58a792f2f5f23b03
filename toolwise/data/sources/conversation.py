"""Published conversations, however they spell turns, calls and images, as OpenAI-style messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from toolwise.agent.protocol import extract_answer, parse_turn
from toolwise.data.task import AnswerType, Message, Task, Trajectory
from toolwise.errors import InputError

IMAGE = "<image>"

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "call",
    "tool": "tool",
    "observation": "tool",
}
_RESPONSE = re.compile(r"^\s*<tool_response>(.*)</tool_response>\s*$", re.DOTALL)


class Said(NamedTuple):
    """One turn as published: its role and its text, with `<image>` where a picture stands."""

    role: str
    text: str


def build_messages(turns: Iterable[Said], images: Sequence[bytes]) -> tuple[Message, ...]:
    """Messages from the first user turn on; system turns are left out.

    Raises:
        InputError: an unknown role, a malformed call, a result nobody called for, or images and
            placeholders that do not add up.
    """
    supply = iter(images)
    messages: list[Message] = []
    unanswered: list[str] = []
    calls = 0
    for said in turns:
        role = _ROLES.get(said.role)
        response = _RESPONSE.match(said.text) if role == "user" else None
        if role is None:
            raise InputError(f"unknown role {said.role!r}")
        if role == "system":
            continue
        if role in ("assistant", "call"):
            text = f"<tool_call>{said.text}</tool_call>" if role == "call" else said.text
            message = _assistant(text, calls)
            made = [call["id"] for call in message.get("tool_calls", ())]
            unanswered += made
            calls += len(made)
            messages.append(message)
        elif role == "tool" or response:
            if not unanswered:
                raise InputError("a tool result that no call asked for")
            text = response.group(1).strip() if response else said.text
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": unanswered.pop(0),
                    "content": _parts(text, supply),
                }
            )
        else:
            messages.append({"role": "user", "content": _parts(said.text, supply)})
    if next(supply, None) is not None:
        raise InputError("more images than <image> placeholders")
    if not messages or messages[0]["role"] != "user":
        raise InputError("the conversation does not start with a user turn")
    return tuple(messages)


def build_trajectory(
    *,
    row_id: str,
    source: str,
    ability: str,
    messages: tuple[Message, ...],
    answer: Sequence[str],
    answer_type: AnswerType,
    metadata: dict[str, Any],
) -> Trajectory:
    """A trajectory whose task is its first user turn.

    Where the data has no reference answer, the final one stands in for it: such rows are as right
    as their authors, and `metadata["reference"]` says `"own answer"`.

    Raises:
        InputError: neither a reference nor a final answer.
    """
    if not answer:
        own = extract_answer(str(messages[-1].get("content") or ""))
        if own is None:
            raise InputError("no reference answer and no final <answer>")
        answer, metadata = [own], {**metadata, "reference": "own answer"}
    parts = messages[0]["content"]
    task = Task(
        id=row_id,
        source=source,
        ability=ability,
        question=" ".join(p["text"] for p in parts if p["type"] == "text").strip(),
        answer=tuple(answer),
        images=tuple(p["image"] for p in parts if p["type"] == "image"),
        answer_type=answer_type,
        metadata=metadata,
    )
    return Trajectory(task, messages)


def _assistant(text: str, first_call: int) -> Message:
    parsed = parse_turn(text)
    message: Message = {"role": "assistant", "content": parsed.content}
    for call in parsed.calls:
        if call.error is not None:
            raise InputError(f"a malformed tool call: {call.error}")
    if parsed.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{first_call + i}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(parsed.calls)
        ]
    return message


def _parts(text: str, supply: Iterable[bytes]) -> list[dict[str, Any]]:
    """Text split at its placeholders; each takes the next image."""
    images = iter(supply)
    parts: list[dict[str, Any]] = []
    for position, piece in enumerate(text.split(IMAGE)):
        if position:
            image = next(images, None)
            if image is None:
                raise InputError("more <image> placeholders than images")
            parts.append({"type": "image", "image": image})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts or [{"type": "text", "text": ""}]
