"""LLaMA-Factory's ShareGPT JSON: `messages` or `conversations` with `images` beside the file.

Turns are `{"role", "content"}` or `{"from", "value"}`. A call is `<tool_call>…</tool_call>` in an
assistant turn or a turn of its own (`function_call`); its result is a turn `observation` or `tool`,
or a user turn in `<tool_response>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from toolwise.data.sources.conversation import Said, build_messages, build_trajectory
from toolwise.data.sources.images import image_bytes
from toolwise.data.task import AnswerType, Trajectory


class _Turn(BaseModel):
    role: str = Field(validation_alias=AliasChoices("role", "from"))
    content: str = Field(validation_alias=AliasChoices("content", "value"))


class _Row(BaseModel):
    turns: list[_Turn] = Field(validation_alias=AliasChoices("messages", "conversations"))
    images: list[Any] | str | None = Field(None, validation_alias=AliasChoices("images", "image"))
    id: str | int | None = None
    answer: str | list[str] = []
    ability: str = "general"


def read_row(row: dict[str, Any], number: int, file: Path) -> Trajectory:
    """One row; raises `InputError` or pydantic's `ValidationError` where it cannot be read."""
    parsed = _Row.model_validate(row)
    listed = [parsed.images] if isinstance(parsed.images, str) else parsed.images or []
    turns = [Said(turn.role, turn.content) for turn in parsed.turns]
    return build_trajectory(
        row_id=str(parsed.id if parsed.id is not None else f"{file.stem}/{number}"),
        source=file.stem,
        ability=parsed.ability,
        messages=build_messages(turns, [image_bytes(value, file.parent) for value in listed]),
        answer=[parsed.answer] if isinstance(parsed.answer, str) else parsed.answer,
        answer_type=AnswerType.EXACT,
        metadata={},
    )
