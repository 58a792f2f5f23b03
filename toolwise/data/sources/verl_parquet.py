"""verl's Parquet, as Metis-RL and Metis-ColdStart are published.

Columns `data_source`, `prompt`, `images[{bytes}]`, `ability`, `reward_model{ground_truth, style}`,
`extra_info{answer, index, pass8, question}`; a `messages` column, where there is one, makes the row
a trajectory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolwise.data.sources.conversation import IMAGE, Said, build_messages, build_trajectory
from toolwise.data.sources.images import image_bytes
from toolwise.data.task import AnswerType, Task, Trajectory

COLUMNS = {"data_source", "prompt", "reward_model"}


class _Turn(BaseModel):
    role: str
    content: str


class _RewardModel(BaseModel):
    ground_truth: str | list[str]
    style: str = "rule"


class _Row(BaseModel):
    data_source: str
    prompt: list[_Turn]
    ability: str
    reward_model: _RewardModel
    images: list[Any] | None = None
    extra_info: dict[str, Any] | None = None
    messages: list[_Turn] | None = None


def read_row(row: dict[str, Any], number: int, file: Path) -> Task | Trajectory:
    """One row; raises `InputError` or pydantic's `ValidationError` where it cannot be read."""
    parsed = _Row.model_validate(row)
    extra = parsed.extra_info or {}
    images = [image_bytes(value, file.parent) for value in parsed.images or ()]
    truth = parsed.reward_model.ground_truth
    answer = [truth] if isinstance(truth, str) else truth
    row_id = f"{parsed.data_source}/{extra.get('index', number)}"
    metadata = {key: extra[key] for key in ("pass8",) if extra.get(key) is not None}
    if parsed.messages:
        turns = [Said(turn.role, turn.content) for turn in parsed.messages]
        return build_trajectory(
            row_id=row_id,
            source=parsed.data_source,
            ability=parsed.ability,
            messages=build_messages(turns, images),
            answer=answer,
            answer_type=_answer_type(parsed),
            metadata=metadata,
        )
    user = next((turn.content for turn in parsed.prompt if turn.role == "user"), "")
    question = str(extra.get("question") or user)
    return Task(
        id=row_id,
        source=parsed.data_source,
        ability=parsed.ability,
        question=question.replace(IMAGE, "").strip(),
        answer=tuple(answer),
        images=tuple(images),
        answer_type=_answer_type(parsed),
        metadata=metadata,
    )


def _answer_type(row: _Row) -> AnswerType:
    if row.reward_model.style != "rule":
        return AnswerType.OPEN
    return AnswerType.MATH if row.ability == "math" else AnswerType.EXACT
