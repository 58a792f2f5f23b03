"""The agent loop: one for training rollouts, curation, evaluation and serving.

Batched by turn (every conversation still open gets its next turn in one generation) and
asynchronous over tools (the calls of all conversations run at once, where the engine tells of
turns as they end already while others write).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from toolwise.agent.engine import Batch, Engine, Sampling, TellsTurns, TokenRecord, Turn
from toolwise.data import Message, Task
from toolwise.data.protocol import ParsedCall, ParsedTurn, extract_answer, parse_turn
from toolwise.tools import Tool, ToolError, ToolResult, ToolSession


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One tool call of a rollout: what was asked, what came back."""

    name: str
    arguments: dict[str, Any]
    result: ToolResult


@dataclass(slots=True)
class Rollout:
    """One attempt at a task.

    Args:
        task: what was asked.
        messages: the conversation, user turn first (no system prompt).
        turns: the assistant turns with tokens, log-probabilities and time.
        calls: every tool call, in order.
        answer: text of the one `<answer>`, or None.
        stop_reason: `answer`, `length`, `max_turns` or `no_answer`.
        batch_index: position in the engine batch.
        tokens: the token record, where `run_agent(…, keep_tokens=True)` asked for it.
    """

    task: Task
    messages: list[Message]
    turns: list[Turn] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    answer: str | None = None
    stop_reason: str = "no_answer"
    batch_index: int = 0
    tokens: TokenRecord | None = None

    @property
    def tool_calls(self) -> int:
        """T: calls made, malformed ones included."""
        return len(self.calls)

    @property
    def completion_tokens(self) -> int:
        return sum(turn.completion_tokens for turn in self.turns)

    @property
    def prompt_tokens(self) -> int:
        return sum(turn.prompt_tokens for turn in self.turns)

    @property
    def tool_seconds(self) -> float:
        return sum(call.result.seconds for call in self.calls)

    @property
    def model_seconds(self) -> float:
        return sum(turn.seconds for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one rollout: assistant turns, and tool calls (further calls get an error)."""

    max_turns: int = 4
    max_tool_calls: int = 8


GREEDY = Sampling()
DEFAULT_LIMITS = Limits()

OnEvent = Callable[[Rollout, Turn | CallRecord], None]
"""Called as each turn and each call finishes (streaming, traces, progress)."""


def user_message(task: Task) -> Message:
    """The task as the user's turn: images first, then what is asked."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": data} for data in task.images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": task.prompt}]}


async def run_agent(
    engine: Engine,
    tasks: Sequence[Task],
    tools: Sequence[Tool] = (),
    *,
    sampling: Sampling = GREEDY,
    limits: Limits = DEFAULT_LIMITS,
    history: Sequence[Sequence[Message]] | None = None,
    on_event: OnEvent | None = None,
    keep_tokens: bool = False,
) -> list[Rollout]:
    """Answer every task, calling tools as the model asks.

    Args:
        engine: the model.
        tasks: one conversation each.
        tools: what the prompt offers; empty is the tools-off counterfactual, in which a call the
            model writes all the same is not run and ends the rollout without an answer.
        sampling: decoding settings.
        limits: bounds per rollout.
        history: conversations to continue instead of the tasks' own user turns (serving).
        on_event: observer.
        keep_tokens: fill `Rollout.tokens` (training).

    Returns:
        One rollout per task, in order.

    Raises:
        BackendError: the engine or a tool backend failed; nothing is scored.
    """
    starts = history if history is not None else [[user_message(task)] for task in tasks]
    rollouts = [
        Rollout(task, list(start), batch_index=index)
        for index, (task, start) in enumerate(zip(tasks, starts, strict=True))
    ]
    batch = engine.start(starts, [tool.schema for tool in tools])
    toolbox = _Toolbox(
        {tool.name: tool for tool in tools},
        limits.max_tool_calls,
        engine.max_result_chars,
        on_event,
        [{} for _ in tasks],
    )
    open_ones = list(range(len(rollouts)))
    calling: dict[int, asyncio.Task[None]] = {}
    closing: list[asyncio.Task[None]] = []
    turns_left = limits.max_turns

    def ended(index: int, turn: Turn) -> None:
        rollout = rollouts[index]
        parsed = _record_turn(rollout, turn, on_event)
        if parsed.calls and tools and turn.finish_reason != "length":
            if turns_left:
                calling[index] = asyncio.create_task(toolbox.answer(rollout, parsed, batch))
                return
            rollout.stop_reason = "max_turns"
        closing.append(asyncio.create_task(toolbox.close(index)))

    tells = isinstance(batch, TellsTurns)
    if isinstance(batch, TellsTurns):
        batch.on_turn = ended
    try:
        while open_ones and turns_left:
            turns_left -= 1
            turns = await batch.generate(open_ones, sampling)
            if not tells:
                for index, turn in zip(open_ones, turns, strict=True):
                    ended(index, turn)
            await asyncio.gather(*calling.values())
            open_ones = sorted(calling)
            calling.clear()
    finally:
        for call in calling.values():
            call.cancel()
        await asyncio.gather(*calling.values(), return_exceptions=True)
        await asyncio.gather(*closing, *map(toolbox.close, range(len(tasks))))
    if keep_tokens:
        for rollout in rollouts:
            rollout.tokens = batch.tokens(rollout.batch_index)
    return rollouts


def _record_turn(rollout: Rollout, turn: Turn, on_event: OnEvent | None) -> ParsedTurn:
    parsed = parse_turn(turn.text)
    message: Message = {"role": "assistant", "content": parsed.content}
    if parsed.calls:
        first = rollout.tool_calls
        message["tool_calls"] = [
            {
                "id": f"call_{first + i}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(parsed.calls)
        ]
    rollout.messages.append(message)
    rollout.turns.append(turn)
    if turn.finish_reason == "length":
        rollout.stop_reason = "length"
    elif not parsed.calls:
        rollout.answer = extract_answer(parsed.content)
        rollout.stop_reason = "answer" if rollout.answer is not None else "no_answer"
    if on_event:
        on_event(rollout, turn)
    return parsed


@dataclass(frozen=True, slots=True)
class _Toolbox:
    """Runs the calls of a batch of rollouts.

    Args:
        tools: what may be called, by name.
        max_calls: per rollout; further calls get an error.
        max_result_chars: longest text of a result.
        on_event: observer.
        sessions: of every rollout of the batch, the tool sessions it has opened, by name.
    """

    tools: Mapping[str, Tool]
    max_calls: int
    max_result_chars: int
    on_event: OnEvent | None
    sessions: Sequence[dict[str, ToolSession]]

    async def answer(self, rollout: Rollout, parsed: ParsedTurn, batch: Batch) -> None:
        """Run one turn's calls in order (they may share a session's state); append the results."""
        replies: list[Message] = []
        for call in parsed.calls:
            result = _cut(await self._run(rollout, call), self.max_result_chars)
            record = CallRecord(call.name, call.arguments, result)
            replies.append(tool_message(f"call_{rollout.tool_calls}", result))
            rollout.calls.append(record)
            if self.on_event:
                self.on_event(rollout, record)
        rollout.messages.extend(replies)
        batch.append(rollout.batch_index, replies)

    async def _run(self, rollout: Rollout, call: ParsedCall) -> ToolResult:
        if call.error is not None:
            return ToolResult(f"Error: {call.error}", is_error=True)
        if call.name not in self.tools:
            return ToolResult(
                f"Error: no tool named {call.name!r}; there are: {', '.join(self.tools)}",
                is_error=True,
            )
        if rollout.tool_calls >= self.max_calls:
            return ToolResult("Error: no tool calls left; answer now", is_error=True)
        sessions = self.sessions[rollout.batch_index]
        started = time.perf_counter()
        try:
            if call.name not in sessions:
                sessions[call.name] = await self.tools[call.name].open(rollout.task.images)
            return await sessions[call.name].call(call.arguments)
        except ToolError as error:
            return ToolResult(
                f"Error: {error}", is_error=True, seconds=time.perf_counter() - started
            )

    async def close(self, index: int) -> None:
        """Close the sessions of a rollout; safe to call twice."""
        sessions = [*self.sessions[index].values()]
        self.sessions[index].clear()
        await asyncio.gather(*(session.close() for session in sessions))


def _cut(result: ToolResult, limit: int) -> ToolResult:
    """A long text's beginning, or an error's end, which is where it says what went wrong."""
    if len(result.text) <= limit:
        return result
    text = f"…{result.text[-limit:]}" if result.is_error else f"{result.text[:limit]}…"
    return replace(result, text=text)


def tool_message(call_id: str, result: ToolResult) -> Message:
    """A tool result as the message the model reads: shown images first, then printed text."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": data} for data in result.images]
    if result.text or not parts:
        parts.append({"type": "text", "text": result.text})
    return {"role": "tool", "tool_call_id": call_id, "content": parts}
