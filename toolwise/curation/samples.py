"""Rows shown in a report: a few of each kind that a filter dropped."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from toolwise.curation.verdicts import Verdict, VerdictLog
from toolwise.data import CorruptImage, Message, Task, Trajectory, open_image

PER_REASON = 3
_SIDE = 320
"""Longest side of a picture in a report; the rows keep theirs as they came."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one message of a trajectory said."""

    role: str
    text: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One dropped row, for a person to look at.

    Args:
        filter: the filter that dropped it.
        reason: why.
        id, source, ability, question, answer, choices: the task's.
        images: data URIs of small versions; "" for a picture that cannot be read.
        turns: what followed the question, in a trajectory.
    """

    filter: str
    reason: str
    id: str
    source: str
    ability: str
    question: str
    answer: tuple[str, ...]
    choices: tuple[str, ...]
    images: tuple[str, ...]
    turns: tuple[Turn, ...] = ()

    def in_words(self) -> Sample:
        """The sample without its pictures."""
        return replace(self, images=(), turns=tuple(replace(t, images=()) for t in self.turns))


def chosen_rows(logs: Mapping[str, VerdictLog]) -> dict[int, tuple[str, Verdict]]:
    """Rows to show, with the filter that dropped them: the first few for each kind of reason."""
    shown: dict[tuple[str, str], int] = {}
    rows: dict[int, tuple[str, Verdict]] = {}
    for name, log in logs.items():
        for row, verdict in log.items():
            kind = (name, kind_of(verdict))
            if not verdict.keep and shown.get(kind, 0) < PER_REASON:
                shown[kind] = shown.get(kind, 0) + 1
                rows[row] = (name, verdict)
    return rows


def kind_of(verdict: Verdict) -> str:
    """The reason without what follows the colon: a judge's own words, another row's name."""
    return verdict.reason.partition(":")[0]


def sample(row: Task | Trajectory, name: str, verdict: Verdict) -> Sample:
    """A row as a report shows it, dropped by the filter `name`."""
    task = row.task if isinstance(row, Trajectory) else row
    return Sample(
        filter=name,
        reason=verdict.reason,
        id=task.id,
        source=task.source,
        ability=task.ability,
        question=task.question,
        answer=task.answer,
        choices=task.choices,
        images=tuple(map(_small, task.images)),
        turns=tuple(map(_turn, row.messages[1:])) if isinstance(row, Trajectory) else (),
    )


def _turn(message: Message) -> Turn:
    content = message.get("content") or ""
    text = [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = text if isinstance(content, str) else content
    texts = [part["text"] for part in parts if part["type"] == "text"]
    for call in message.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        texts.append(f"{call['function']['name']}({json.dumps(arguments, ensure_ascii=False)})")
    images = tuple(_small(part["image"]) for part in parts if part["type"] == "image")
    return Turn(message["role"], "\n".join(text for text in texts if text), images)


def _small(image: bytes) -> str:
    try:
        with open_image(image) as opened:
            opened.draft("RGB", (_SIDE, _SIDE))
            picture = opened.convert("RGB")
    except CorruptImage:
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
