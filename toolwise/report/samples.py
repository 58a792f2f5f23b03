"""Sample rollouts for the page: the same items, answered by each stage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolwise.errors import InputError

SampleRow = dict[str, Any]
"""A line of an evaluation's `samples.jsonl`."""

_MARKUP = re.compile(r"</?(?:answer|reason)>")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened: the model's text, a call (`code`), or what came back."""

    kind: str
    text: str = ""
    tool: str = ""
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One stage's greedy rollout on an item; `steps` end with what it said last."""

    stage: str
    correct: bool
    tool_calls: int
    answer: str | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One benchmark item and every stage's attempt at it."""

    task_id: str
    ability: str
    why: str
    question: str
    accepted: tuple[str, ...]
    images: tuple[str, ...]
    attempts: tuple[Attempt, ...]


def read_samples(stage_dir: Path) -> list[SampleRow]:
    """The rollouts a stage's evaluation kept; none where it kept none.

    Raises:
        InputError: a line is not JSON.
    """
    path = stage_dir / "samples.jsonl"
    if not path.exists():
        return []
    rollouts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rollouts.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}") from None
    return rollouts


def choose_items(samples: Mapping[str, list[SampleRow]]) -> list[Item]:
    """The items shown, chosen by rule and not by hand.

    Per ability, the first kept item that the last stage answers without a tool and the first it
    answers with one; after those, the first it gets wrong.
    """
    if not samples:
        return []
    greedy = {
        stage: {rollout["task_id"]: rollout for rollout in rollouts if rollout["mode"] == "greedy"}
        for stage, rollouts in samples.items()
    }
    last = list(greedy.values())[-1]
    shared = [task for task in last if all(task in found for found in greedy.values())]
    chosen: dict[str, str] = {}
    for ability in sorted({last[task]["ability"] for task in shared}):
        of_ability = [task for task in shared if last[task]["ability"] == ability]
        for why, matches in (
            ("answered without a tool", lambda r: r["correct"] and not r["tool_calls"]),
            ("answered with a tool", lambda r: r["correct"] and r["tool_calls"] > 0),
        ):
            _add_first(chosen, of_ability, last, matches, why)
    _add_first(chosen, shared, last, lambda r: not r["correct"], "got wrong")
    return [_item(task, why, greedy) for task, why in chosen.items()]


def _add_first(
    chosen: dict[str, str],
    tasks: Sequence[str],
    rollouts: dict[str, SampleRow],
    matches: Callable[[SampleRow], bool],
    why: str,
) -> None:
    found = next((task for task in tasks if matches(rollouts[task])), None)
    if found is not None:
        chosen.setdefault(found, why)


def _item(task_id: str, why: str, greedy: dict[str, dict[str, SampleRow]]) -> Item:
    last = list(greedy.values())[-1][task_id]
    asked = next(message for message in last["messages"] if message["role"] == "user")
    return Item(
        task_id,
        last["ability"],
        why,
        _text(asked["content"]),
        tuple(last["accepted"]),
        _images(asked["content"]),
        tuple(
            Attempt(
                stage,
                rollouts[task_id]["correct"],
                rollouts[task_id]["tool_calls"],
                rollouts[task_id]["answer"],
                tuple(_steps(rollouts[task_id]["messages"])),
            )
            for stage, rollouts in greedy.items()
        ),
    )


def _steps(messages: Iterable[dict[str, Any]]) -> Iterable[Step]:
    for message in messages:
        content = message.get("content") or ""
        if message["role"] == "assistant":
            if text := _MARKUP.sub("", _text(content)).strip():
                yield Step("text", text)
            for call in message.get("tool_calls") or ():
                yield _call(call["function"])
        elif message["role"] == "tool":
            yield Step("result", _text(content), images=_images(content))


def _call(function: dict[str, Any]) -> Step:
    arguments = function["arguments"]
    only = next(iter(arguments.values())) if len(arguments) == 1 else None
    shown = only if isinstance(only, str) else json.dumps(arguments, ensure_ascii=False)
    return Step("call", shown, function["name"] or "a tool, malformed")


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _images(content: str | list[dict[str, Any]]) -> tuple[str, ...]:
    """The data URIs in a message; anything else is left out, so that the page fetches nothing."""
    if isinstance(content, str):
        return ()
    addresses = (part["image_url"]["url"] for part in content if part["type"] == "image_url")
    return tuple(address for address in addresses if address.startswith("data:image/"))
