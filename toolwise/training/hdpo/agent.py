"""Who makes the rollouts that `HDPOTrainer` learns from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from toolwise.agent import (
    Engine,
    Limits,
    Rollout,
    Sampling,
    TokenRecord,
    run_agent,
    user_message,
)
from toolwise.agent.engine import CountsWork, EngineStats
from toolwise.agent.rendering import Renderer
from toolwise.data import Message, Task
from toolwise.tools import Tool


class RolloutAgent(Protocol):
    """Answers tasks with the policy being trained."""

    renderer: Renderer
    """Preprocesses the images of the rollouts."""

    suppressed_ids: Sequence[int]
    """Tokens that are never sampled, and so are no part of the distribution that is trained."""

    stats: EngineStats | None
    """What has been computed for the rollouts so far, where that is counted."""

    def answer(
        self, tasks: Sequence[Task], sampling: Sampling, *, tool_free: bool = False
    ) -> Sequence[Rollout]:
        """One rollout per task, in order, with `Rollout.tokens` filled.

        `tool_free` ones are sampled under a prompt that offers no tools.
        """
        ...

    def prompt_ids(self, task: Task, *, tool_free: bool) -> tuple[int, ...]:
        """The tokens a rollout of `task` starts with."""
        ...


class TokenEngine(Engine, Protocol):
    """An engine that keeps the tokens of its conversations."""

    renderer: Renderer
    suppressed_ids: Sequence[int]


class InProcessAgent:
    """The agent loop, run by the trainer.

    Args:
        engine: samples from the very model that is trained.
        tools: what the prompt offers.
        limits: bounds per rollout.
    """

    def __init__(self, engine: TokenEngine, tools: Sequence[Tool], limits: Limits) -> None:
        self.renderer = engine.renderer
        self.suppressed_ids = engine.suppressed_ids
        self.stats = engine.stats if isinstance(engine, CountsWork) else None
        self._engine = engine
        self._tools = tools
        self._limits = limits

    def answer(
        self, tasks: Sequence[Task], sampling: Sampling, *, tool_free: bool = False
    ) -> list[Rollout]:
        """One rollout per task, in order, with `Rollout.tokens` filled."""
        return asyncio.run(
            run_agent(
                self._engine,
                tasks,
                () if tool_free else self._tools,
                sampling=sampling,
                limits=self._limits,
                keep_tokens=True,
            )
        )

    def prompt_ids(self, task: Task, *, tool_free: bool) -> tuple[int, ...]:
        """The tokens a rollout of `task` starts with."""
        offered = [] if tool_free else [tool.schema for tool in self._tools]
        return tuple(self.renderer.prompt([user_message(task)], offered).ids)


def token_record(rollout: Rollout) -> TokenRecord:
    """The tokens of a rollout; raises `ValueError` where its agent has not kept them."""
    if rollout.tokens is None:
        raise ValueError("the agent must keep tokens: run_agent(…, keep_tokens=True)")
    return rollout.tokens


def completion(rollout: Rollout) -> list[Message]:
    """The messages after the user's turn, which is what TRL calls a completion."""
    first = next(i for i, message in enumerate(rollout.messages) if message["role"] == "assistant")
    return rollout.messages[first:]


def count_calls(completion: Any) -> int:
    """T of a completion: calls in its assistant messages; plain text has none."""
    if isinstance(completion, str):
        return 0
    return sum(len(message.get("tool_calls") or ()) for message in completion)
