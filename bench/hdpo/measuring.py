"""Answers of a checkpoint, in this process: what it knows of prompts, how it does on items."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.hdpo.remembering import open_remembering
from toolwise.agent import Limits, Rollout, Sampling, run_agent
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data import Task, grade
from toolwise.data.parquet import read_tasks
from toolwise.evaluation.metrics import Mode, RolloutScore, score
from toolwise.tools import Tool

MAX_TOKENS = 32
KNOWN_SAMPLES = 8
"""Answers that say what a start knows of a prompt, without tools and with."""
MIXED = 1
"""Of those with tools, right and wrong ones at least of a prompt that mixes both."""
SAMPLING: dict[Mode, tuple[int, Sampling]] = {
    "greedy": (1, Sampling(max_tokens=MAX_TOKENS)),
    "sampled": (2, Sampling(temperature=1.0, max_tokens=MAX_TOKENS, seed=1)),
    "tools_off": (8, Sampling(temperature=0.7, top_p=0.8, max_tokens=MAX_TOKENS, seed=2)),
}
"""Answers per item and their decoding; `toolwise evaluate` decodes alike."""


def answers(
    engine: TransformersEngine,
    tasks: Sequence[Task],
    tools: Sequence[Tool],
    samples: int,
    sampling: Sampling,
) -> list[tuple[int, Rollout]]:
    """`samples` rollouts of each task, with the number of the sample."""
    asked = [task for task in tasks for _ in range(samples)]
    rollouts = asyncio.run(
        run_agent(engine, asked, tools, sampling=sampling, limits=Limits(max_turns=4))
    )
    return [(index % samples, rollout) for index, rollout in enumerate(rollouts)]


def score_items(
    engine: TransformersEngine, items: Sequence[Task], tools: Sequence[Tool]
) -> list[RolloutScore]:
    """Every item answered greedily, sampled, and without tools."""
    return [
        score(rollout, mode, sample)
        for mode, (samples, sampling) in SAMPLING.items()
        for sample, rollout in answers(
            engine, items, () if mode == "tools_off" else tools, samples, sampling
        )
    ]


def ask_prompts(checkpoint: Path, prompts: Path, corpus: Path) -> dict[str, dict[str, Any]]:
    """What a checkpoint knows of each prompt.

    `solvable`: all its tools-off answers are right. `mixed`: of its sampled answers with tools at
    least `MIXED` are right and as many wrong. `called`: share of those with a call.
    """
    tasks = read_tasks(prompts)
    engine = TransformersEngine.load(checkpoint)
    tools = open_remembering(corpus)
    try:
        off = answers(engine, tasks, (), KNOWN_SAMPLES, SAMPLING["tools_off"][1])
        on = answers(engine, tasks, tools, KNOWN_SAMPLES, SAMPLING["sampled"][1])
    finally:
        asyncio.run(close(tools))
    known: dict[str, dict[str, Any]] = {}
    for task in tasks:
        alone = [grade(task, r.answer) for _, r in off if r.task.id == task.id]
        offered = [r for _, r in on if r.task.id == task.id]
        right = sum(grade(task, r.answer) for r in offered)
        known[task.id] = {
            "solvable": all(alone),
            "mixed": MIXED <= right <= len(offered) - MIXED,
            "called": sum(r.tool_calls > 0 for r in offered) / len(offered),
        }
    return known


async def close(tools: Sequence[Tool]) -> None:
    """Close the tools' backends."""
    await asyncio.gather(*(tool.aclose() for tool in tools))
