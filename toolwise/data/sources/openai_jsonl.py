"""OpenAI messages, one conversation per line: `{"messages": […]}`.

Content is text or parts (`text`, `image_url` with a `data:` URI or a file beside the data), calls
stand in `tool_calls` with their arguments as JSON text, results in `tool` messages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolwise.data.sources.conversation import build_trajectory
from toolwise.data.sources.images import image_bytes
from toolwise.data.task import AnswerType, Message, Trajectory
from toolwise.errors import InputError

_OWN_KEYS = {"tool_calls", "tool_call_id"}


class _Function(BaseModel):
    name: str
    arguments: str | dict[str, Any]


class _Call(BaseModel):
    id: str
    function: _Function


class _Message(BaseModel):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Row(BaseModel):
    messages: list[_Message]
    id: str | int | None = None
    answer: str | list[str] = []
    ability: str = "general"


def is_openai(row: dict[str, Any]) -> bool:
    """Whether a row uses what only OpenAI's messages have: parts, or calls apart from the text."""
    messages = row.get("messages")
    return isinstance(messages, list) and any(
        isinstance(message, dict)
        and (isinstance(message.get("content"), list) or message.keys() & _OWN_KEYS)
        for message in messages
    )


def read_row(row: dict[str, Any], number: int, file: Path) -> Trajectory:
    """One row; raises `InputError` or pydantic's `ValidationError` where it cannot be read."""
    parsed = _Row.model_validate(row)
    messages = tuple(
        _message(message, file.parent)
        for message in parsed.messages
        if message.role not in ("system", "developer")
    )
    if not messages or messages[0]["role"] != "user":
        raise InputError("the conversation does not start with a user turn")
    return build_trajectory(
        row_id=str(parsed.id if parsed.id is not None else f"{file.stem}/{number}"),
        source=file.stem,
        ability=parsed.ability,
        messages=messages,
        answer=[parsed.answer] if isinstance(parsed.answer, str) else parsed.answer,
        answer_type=AnswerType.EXACT,
        metadata={},
    )


def _message(message: _Message, folder: Path) -> Message:
    if message.role == "assistant":
        content = message.content or ""
        if not isinstance(content, str):
            content = "".join(str(part.get("text", "")) for part in content)
        built: Message = {"role": "assistant", "content": content}
        if message.tool_calls:
            built["tool_calls"] = [_call(call) for call in message.tool_calls]
        return built
    built = {"role": message.role, "content": _parts(message.content or "", folder)}
    if message.role == "tool":
        if message.tool_call_id is None:
            raise InputError("a tool message without `tool_call_id`")
        return {**built, "tool_call_id": message.tool_call_id}
    if message.role != "user":
        raise InputError(f"unknown role {message.role!r}")
    return built


def _call(call: _Call) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise InputError(f"the arguments of a call are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise InputError("the arguments of a call are not an object")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _parts(content: str | list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = []
    for part in content:
        match part.get("type"):
            case "text":
                parts.append({"type": "text", "text": str(part.get("text", ""))})
            case "image_url":
                picture = image_bytes(part.get("image_url"), folder)
                parts.append({"type": "image", "image": picture})
            case kind:
                raise InputError(f"a content part of the unknown type {kind!r}")
    return parts
