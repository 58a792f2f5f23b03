"""A model behind an endpoint that judges how tools were used, and whether a question is clear."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from toolwise.curation.verdicts import Verdict
from toolwise.data import Message, Task, Trajectory, data_uri
from toolwise.errors import BackendError, InputError
from toolwise.judge.endpoint import EndpointSettings, JudgeEndpoint
from toolwise.judge.spend import BudgetSpent
from toolwise.storage import cache_path

PROMPTS = Path(__file__).parent
GIVE_UP_AFTER = 8
"""Rows in a row the judge may fail on before it is not asked any more."""

Row = TypeVar("Row")
Reply = TypeVar("Reply", bound=BaseModel)


class JudgeSettings(EndpointSettings):
    """A model behind an OpenAI-compatible endpoint that judges.

    Args:
        max_waiting: rows that may be left out because the judge failed on them; more end the
            step, which goes on from there when run again. Rows that wait because the budget is
            spent are not counted here: they are left out, and the report says so.
    """

    max_waiting: int = Field(default=0, ge=0)


class TrajectoryScores(BaseModel):
    """What a judge gives a trajectory, or the least it has to give; each from 1 to 5.

    Args:
        visual_relevance: what was looked at is what the question is about.
        reasoning_coherence: each step follows from what was seen and returned before.
        tool_use_rationale: every call was needed, and its result used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    visual_relevance: int = Field(default=3, ge=1, le=5)
    reasoning_coherence: int = Field(default=3, ge=1, le=5)
    tool_use_rationale: int = Field(default=3, ge=1, le=5)


LEAST = TrajectoryScores()
"""3 of 5, as the prompt describes it: flawed, and still worth imitating."""


class _Assessment(BaseModel):
    """What a judge has to answer about a trajectory."""

    model_config = ConfigDict(extra="ignore", strict=True)

    reason: str
    visual_relevance: int = Field(ge=1, le=5)
    reasoning_coherence: int = Field(ge=1, le=5)
    tool_use_rationale: int = Field(ge=1, le=5)


class _Decision(BaseModel):
    """What a judge has to answer about a question."""

    model_config = ConfigDict(extra="ignore", strict=True)

    reason: str
    keep: bool


class LlmJudge:
    """Asks a model, whose instructions are `sft_judge.md` and `rl_judge.md` beside this file.

    A request that fails, or a reply that is not the JSON asked for, is tried again with a bound
    and then raises: a failure is never a verdict.

    Args:
        settings: where the model is, and what it may cost.
        work: the run's folder of verdicts. What the judge was paid stands there, so that a run
            that goes on keeps to its budget; and replies are remembered (under `TOOLWISE_CACHE`),
            so that another run over the same rows costs nothing. Without it neither is kept.
    """

    def __init__(self, settings: JudgeSettings, work: Path | None = None) -> None:
        self.settings = settings
        self.endpoint = JudgeEndpoint(
            settings,
            cache=cache_path("judge", settings.model).with_suffix(".jsonl") if work else None,
            bill=work / "bill.jsonl" if work else None,
        )
        self.name = self.endpoint.name

    def trajectory(self, trajectory: Trajectory, least: TrajectoryScores = LEAST) -> Verdict:
        """Whether the trajectory used its tools strategically: no score is below `least`.

        Raises:
            BackendError: no usable reply after the last attempt.
        """
        parts = _task_parts(trajectory.task)
        for message in trajectory.messages[1:]:
            parts += _message_parts(message)
        given = self.ask("sft_judge.md", parts, _Assessment)
        scores = {name: getattr(given, name) for name in TrajectoryScores.model_fields}
        short = {name: score - getattr(least, name) for name, score in scores.items()}
        worst = min(short, key=lambda name: short[name])
        reason = "" if short[worst] >= 0 else f"low {worst.replace('_', ' ')}: {given.reason}"
        return Verdict(not reason, reason, {name: float(score) for name, score in scores.items()})

    def task(self, task: Task) -> Verdict:
        """Whether the question has one answer that can be checked.

        Raises:
            BackendError: no usable reply after the last attempt.
        """
        given = self.ask("rl_judge.md", _task_parts(task), _Decision)
        return Verdict(given.keep, "" if given.keep else f"judge: {given.reason}")

    def ask(self, prompt: str, parts: list[dict[str, Any]], reply: type[Reply]) -> Reply:
        """The judge's answer to OpenAI-style content `parts`, under the prompt file's instructions.

        Raises:
            BackendError: no usable reply after the last attempt, or the budget is spent.
        """
        messages = [
            {"role": "system", "content": (PROMPTS / prompt).read_text(encoding="utf-8")},
            {"role": "user", "content": parts},
        ]
        schema = {**reply.model_json_schema(), "additionalProperties": False}
        form = {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": schema, "strict": True},
        }
        return self.endpoint.ask(messages, reply.model_validate_json, form)

    def account(self) -> str:
        """What it took, in a sentence or two for a report."""
        bill = self.endpoint.bill
        told = (
            f"The {self.name} gave {bill.replies} replies for {bill}; "
            f"{self.endpoint.remembered} more were remembered from earlier runs."
        )
        if bill.spent:
            told += (
                " Its budget is spent: rows it was not asked about wait. To have them judged, raise"
                " `judge.budget` and run again; what it has said already costs nothing."
            )
        return told


class JudgePanel(Generic[Row]):
    """Asks a judge about rows, several at a time, and stops asking when it keeps failing.

    Args:
        ask: the question, one of `LlmJudge`'s.
        settings: the judge's.
    """

    def __init__(self, ask: Callable[[Row], Verdict], settings: JudgeSettings) -> None:
        self.settings = settings
        self._ask = ask
        self._failures = 0
        self._unpaid: set[int] = set()
        self._last_error: BackendError | None = None

    async def decide(self, rows: Mapping[int, Row]) -> dict[int, Verdict]:
        """Verdicts by row number; rows the judge failed on, or has no budget for, wait."""
        slots = asyncio.Semaphore(self.settings.concurrency)

        async def one(number: int, row: Row) -> Verdict | None:
            async with slots:
                if self._failures >= GIVE_UP_AFTER:
                    return None
                try:
                    verdict = await asyncio.to_thread(self._ask, row)
                except BudgetSpent:
                    self._unpaid.add(number)
                    return None
                except BackendError as error:
                    self._failures += 1
                    self._last_error = error
                    return None
                self._failures = 0
                return verdict

        verdicts = await asyncio.gather(*(one(*item) for item in rows.items()))
        return {n: v for n, v in zip(rows, verdicts, strict=True) if v is not None}

    def settle(self, waiting: Collection[int]) -> None:
        """Accept that rows wait, or not.

        Raises:
            BackendError: the judge failed on more than `max_waiting`; the verdicts so far are kept.
        """
        failed = len(set(waiting) - self._unpaid)
        if failed > self.settings.max_waiting:
            raise BackendError(
                f"{failed} rows wait for the judge (at most {self.settings.max_waiting} "
                f"may): {self._last_error}. The other verdicts are kept: run the step again, or "
                "raise `judge.max_waiting` to leave these rows out"
            )


def _task_parts(task: Task) -> list[dict[str, Any]]:
    options = "".join(f"\n({chr(65 + i)}) {choice}" for i, choice in enumerate(task.choices))
    return [
        *(_image_part(image) for image in task.images),
        _text_part(f"Question: {task.question}{options}"),
        _text_part(f"Accepted answers: {json.dumps(task.answer, ensure_ascii=False)}"),
    ]


def _message_parts(message: Message) -> Iterable[dict[str, Any]]:
    content = message.get("content") or ""
    pieces: list[dict[str, Any]] = [_text_part(content)] if isinstance(content, str) else content
    yield _text_part(f"[{message['role']}]")
    for piece in pieces:
        if piece["type"] == "image":
            yield _image_part(piece["image"])
        elif piece["text"]:
            yield _text_part(piece["text"])
    for call in message.get("tool_calls") or ():
        yield _text_part("calls " + json.dumps(call["function"], ensure_ascii=False))


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image_part(image: bytes) -> dict[str, Any]:
    try:
        return {"type": "image_url", "image_url": {"url": data_uri(image)}}
    except InputError:
        return _text_part("[an image that cannot be read]")
