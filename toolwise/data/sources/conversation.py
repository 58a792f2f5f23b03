"""Published conversations, however they spell turns, calls and images, as OpenAI-style messages.

What comes out speaks the protocol of `toolwise.data.protocol`: code between `<code>` tags is a
call of `python`, `search` is `text_search`, and reasoning stands in `<reason>` instead of
`<think>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from toolwise.data.protocol import extract_answer, parse_turn
from toolwise.data.sources.options import choices_of
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
_TOOL_NAMES = {"search": "text_search"}
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
_FENCE = re.compile(r"^\s*```(?:python)?[ \t]*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_EXECUTION = re.compile(
    r"^\s*Code execution result:\s*stdout:\s*```\n?(?P<stdout>.*?)\n?```\s*"
    r"stderr:\s*```\n?(?P<stderr>.*?)\n?```\s*(?:Images:)?(?P<rest>.*)$",
    re.DOTALL,
)
_INTERLEAVED = re.compile(
    r"<code>(?P<code>.*?)</code>\s*(?:<sandbox_output>(?P<output>.*?)</sandbox_output>)?", re.DOTALL
)


class Said(NamedTuple):
    """One turn as published: its role and its text, with `<image>` where a picture stands."""

    role: str
    text: str


def build_messages(turns: Iterable[Said], images: Sequence[bytes]) -> tuple[Message, ...]:
    """Messages from the first user turn on; system turns are left out.

    A user turn that follows a call is its result.

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
        if role is None:
            raise InputError(f"unknown role {said.role!r}")
        if role == "system":
            continue
        if role in ("assistant", "call"):
            text = f"<tool_call>{said.text}</tool_call>" if role == "call" else said.text
            message = assistant_message(text, calls)
            made = [call["id"] for call in message.get("tool_calls", ())]
            unanswered += made
            calls += len(made)
            messages.append(message)
        elif role == "tool" or unanswered or _RESPONSE.search(said.text):
            for result in _results(said.text):
                if not unanswered:
                    raise InputError("a tool result that no call asked for")
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": unanswered.pop(0),
                        "content": _parts(result, supply),
                    }
                )
        else:
            messages.append({"role": "user", "content": _parts(said.text, supply)})
    if next(supply, None) is not None:
        raise InputError("more images than <image> placeholders")
    if not messages or messages[0]["role"] != "user":
        raise InputError("the conversation does not start with a user turn")
    return tuple(messages)


def interleaved_turns(text: str, unrecorded: str | None = None) -> list[Said]:
    """The turns of one text that holds reasoning, `<code>` and `<sandbox_output>` in turn.

    Args:
        text: `<think>… <code>…</code> <sandbox_output>…</sandbox_output> …</think><answer>…`.
        unrecorded: the result of code that has none in the text.

    Raises:
        InputError: an output without code, or code without an output.
    """
    text = re.sub(r"</?think>", "", text)
    turns: list[Said] = []
    start = 0
    for found in _INTERLEAVED.finditer(text):
        output = found["output"] if found["output"] is not None else unrecorded
        if output is None:
            raise InputError("a code block without a <sandbox_output>")
        thought = _thought(text[start : found.start()])
        turns.append(Said("assistant", f"{thought}<code>{found['code']}</code>"))
        turns.append(Said("tool", output.strip()))
        start = found.end()
    reasoning, tag, answer = text[start:].partition("<answer>")
    turns.append(Said("assistant", _thought(reasoning) + tag + answer.rstrip()))
    if any("sandbox_output>" in turn.text for turn in turns):
        raise InputError("a <sandbox_output> that no code block asked for")
    return turns


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
    """A trajectory whose task is its first user turn; a question that lists options is a choice.

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
    question = " ".join(p["text"] for p in parts if p["type"] == "text").strip()
    answer_type, choices = choices_of(question, answer, answer_type)
    task = Task(
        id=row_id,
        source=source,
        ability=ability,
        question=question,
        answer=tuple(answer),
        images=tuple(p["image"] for p in parts if p["type"] == "image"),
        answer_type=answer_type,
        choices=choices,
        metadata=metadata,
    )
    return Trajectory(task, messages)


def assistant_message(text: str, first_call: int) -> Message:
    """An assistant turn with its calls apart from the text, numbered from `first_call`.

    Raises:
        InputError: a malformed call, or a code block that is not closed.
    """
    text = text.replace("<think>", "<reason>").replace("</think>", "</reason>")
    calls = [("python", {"code": _unfenced(code)}) for code in _CODE.findall(text)]
    parsed = parse_turn(_CODE.sub("", text))
    if "<code>" in parsed.content:
        raise InputError("a code block that is not closed")
    for call in parsed.calls:
        if call.error is not None:
            raise InputError(f"a malformed tool call: {call.error}")
        calls.append((_TOOL_NAMES.get(call.name, call.name), call.arguments))
    message: Message = {"role": "assistant", "content": parsed.content}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(calls, first_call)
        ]
    return message


def _thought(text: str) -> str:
    return f"<reason>{text.strip()}</reason>" if text.strip() else ""


def _unfenced(code: str) -> str:
    fenced = _FENCE.match(code)
    return fenced.group(1) if fenced else code.strip()


def _results(text: str) -> list[str]:
    """The results a turn holds: one, or one for each `<tool_response>`."""
    responses = _RESPONSE.findall(text)
    if responses:
        return [response.strip() for response in responses]
    executed = _EXECUTION.match(text)
    if executed:
        # As the sandbox gives it: what was printed, then what was complained of, then pictures.
        printed = [executed[part].strip("\n") for part in ("stdout", "stderr", "rest")]
        return ["\n".join(part.strip() if part.isspace() else part for part in printed).strip()]
    return [text]


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
