"""Raw supervised trajectories, as flawed as collected ones are: food for curation.

Most call a tool whether the item needs it or not. Some carry a planted flaw, named in
`metadata["flaw"]` for tests and reports only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np

from toolwise.agent import tool_message, user_message
from toolwise.data import Message, Task, Trajectory, decode_image, encode_image
from toolwise.synthetic import arithmetic, perception
from toolwise.synthetic.facts import Fact
from toolwise.tools import ToolResult


class Flaw(StrEnum):
    """What may be wrong with a trajectory."""

    FAILING_CODE = "failing_code"
    MADE_UP_OUTPUT = "made_up_output"
    FOR_SHOW = "for_show"


def direct(task: Task) -> Trajectory:
    """Answer at once."""
    return Trajectory(task, (user_message(task), _answer(task.answer[0])))


def without_tools(task: Task) -> Trajectory:
    """Answer at once, under a prompt that offers no tools (replay of what the base model does)."""
    return direct(replace(task, metadata={**task.metadata, "tools": "none"}))


def with_tool(task: Task, facts: dict[str, Fact]) -> Trajectory:
    """Call the ability's tool once and answer from its result."""
    name, arguments, result = _call(task, facts)
    return Trajectory(
        task,
        (
            user_message(task),
            *_exchange(0, name, arguments, result),
            _answer(task.answer[0]),
        ),
    )


def flawed(task: Task, facts: dict[str, Fact], flaw: Flaw, rng: np.random.Generator) -> Trajectory:
    """A tool trajectory with one planted flaw."""
    name, arguments, result = _call(task, facts)
    exchanges: Sequence[Message]
    answer = task.answer[0]
    match flaw:
        case Flaw.FAILING_CODE:
            broken = {"code": str(arguments.get("code", "search()")).replace("(", "(_", 1)}
            exchanges = _exchange(0, "python", broken, result)
        case Flaw.MADE_UP_OUTPUT:
            answer = str(rng.integers(10, 100))
            exchanges = _exchange(0, name, arguments, ToolResult(_made_up(task, answer)))
        case Flaw.FOR_SHOW:
            shown = ToolResult("checking")
            exchanges = [
                *_exchange(0, "python", {"code": "print('checking')"}, shown),
                *_exchange(1, name, arguments, result),
            ]
    marked = replace(task, metadata={**task.metadata, "flaw": flaw.value})
    return Trajectory(marked, (user_message(task), *exchanges, _answer(answer)))


def _made_up(task: Task, answer: str) -> str:
    if task.ability == "search":
        return f"As of today, {task.metadata['subject']} is {answer}."
    return answer


def _call(task: Task, facts: dict[str, Fact]) -> tuple[str, dict[str, str], ToolResult]:
    """The right call for a task, with what it returns."""
    match task.ability:
        case "perception":
            left, top, right, bottom = task.metadata["box"]
            box = (left, top, right, bottom)
            shown = encode_image(decode_image(task.images[0]).crop(box))
            return "python", {"code": perception.crop_code(box)}, ToolResult("", (shown,))
        case "math":
            expression = task.metadata["expression"]
            value = ToolResult(arithmetic.value(expression))
            return "python", {"code": arithmetic.code(expression)}, value
        case _:
            fact = facts[task.metadata["subject"]]
            return "text_search", {"query": fact.query}, ToolResult(fact.passage)


def _exchange(
    number: int, name: str, arguments: dict[str, str], result: ToolResult
) -> list[Message]:
    call_id = f"call_{number}"
    function = {"name": name, "arguments": arguments}
    return [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        tool_message(call_id, result),
    ]


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": f"<answer>{text}</answer>"}
