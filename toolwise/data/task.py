"""What is asked (`Task`) and what an agent did about it (`Trajectory`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from PIL import Image

from toolwise.data.image import decode_image

Message = dict[str, Any]
"""One OpenAI-style chat message.

`content` is a string or a list of parts, `{"type": "text", "text": …}` or
`{"type": "image", "image": <encoded bytes>}`. Assistant messages may carry `tool_calls`
(`{"id", "type": "function", "function": {"name", "arguments": {…}}}`, arguments as a dict),
tool messages a `tool_call_id`.
"""


class AnswerType(StrEnum):
    """How an answer is compared with the accepted ones."""

    EXACT = "exact"
    CHOICE = "choice"
    MATH = "math"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Task:
    """One question with its accepted answers.

    Args:
        id: unique within its source.
        source: name of the data set it came from.
        ability: `perception`, `search`, `math`, …; metrics are reported per ability.
        question: the user's text.
        answer: accepted answers, any of which is right.
        images: encoded images (PNG, JPEG, …), exactly as they came.
        answer_type: how `answer` is compared.
        choices: option texts of a multiple-choice question, in order (A, B, …).
        metadata: anything else. Synthetic tasks keep `needs_tool` here, which only tests and
            reports may read; benchmark items keep `prompt` here, their own wording of the question
            for a model, options and instructions included.
    """

    id: str
    source: str
    ability: str
    question: str
    answer: tuple[str, ...]
    images: tuple[bytes, ...] = ()
    answer_type: AnswerType = AnswerType.EXACT
    choices: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """What a model is asked: `metadata["prompt"]`, or else the question and its options."""
        if "prompt" in self.metadata:
            return self.metadata["prompt"]
        options = [f"({chr(65 + i)}) {choice}" for i, choice in enumerate(self.choices)]
        return "\n".join([self.question, *options])

    def pil_images(self) -> list[Image.Image]:
        """The images decoded to RGB; raises `CorruptImage`."""
        return [decode_image(data) for data in self.images]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A task plus the messages of one attempt at it (system prompt excluded, user turn first)."""

    task: Task
    messages: tuple[Message, ...]

    @property
    def tool_calls(self) -> int:
        """T, the number of tool calls the assistant made."""
        return sum(len(m.get("tool_calls") or ()) for m in self.messages)
