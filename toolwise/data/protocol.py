"""The chat protocol: what the model writes, and how it is read.

A call is `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, the final answer
`<answer>…</answer>` (exactly one), reasoning `<reason>…</reason>`; the rest is the Qwen3-VL chat
template. This is the only parser: training, curation, evaluation and serving all use it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
SPECIAL = re.compile(r"<\|im_end\|>|<\|endoftext\|>")


class ParsedCall(NamedTuple):
    """One tool call as the model wrote it.

    `error` is set (and `name` may be empty) when the call is malformed; the loop hands it back to
    the model as the tool's result.
    """

    name: str
    arguments: dict[str, Any]
    error: str | None = None


class ParsedTurn(NamedTuple):
    """One assistant turn: its text without markup for calls, the calls, the final answer."""

    content: str
    calls: tuple[ParsedCall, ...]
    answer: str | None


def parse_turn(text: str) -> ParsedTurn:
    """Read one assistant turn. Never raises: a malformed call becomes a `ParsedCall` with error."""
    text = SPECIAL.sub("", text)
    calls = [_parse_call(body) for body in TOOL_CALL.findall(text)]
    content = TOOL_CALL.sub("", text).strip()
    if "<tool_call>" in content:
        calls.append(ParsedCall("", {}, "the call was not closed with </tool_call>"))
        content = content.split("<tool_call>", 1)[0].strip()
    return ParsedTurn(content, tuple(calls), extract_answer(content))


def extract_answer(text: str) -> str | None:
    """The text of the one `<answer>` block; None where there is none or more than one."""
    answers = ANSWER.findall(text)
    return answers[0].strip() if len(answers) == 1 else None


def is_well_formed(turns: list[str]) -> bool:
    """Format reward: every call parses, and exactly one answer stands, in the last turn only."""
    if not turns:
        return False
    parsed = [parse_turn(turn) for turn in turns]
    calls_parse = all(call.error is None for turn in parsed for call in turn.calls)
    early_answer = any(ANSWER.search(turn.content) for turn in parsed[:-1])
    return calls_parse and not early_answer and parsed[-1].answer is not None


def _parse_call(body: str) -> ParsedCall:
    try:
        call = json.loads(body)
    except json.JSONDecodeError as error:
        return ParsedCall(
            "", {}, f"the call is not valid JSON: {error.msg} at character {error.pos}"
        )
    except (ValueError, RecursionError):
        return ParsedCall("", {}, "the call is nested too deep, or has a number too long, to read")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ParsedCall("", {}, 'a call is an object {"name": …, "arguments": {…}}')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return ParsedCall(call["name"], {}, "`arguments` must be an object")
    return ParsedCall(call["name"], arguments)
