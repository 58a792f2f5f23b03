"""One evaluation worker: answers the batches its parent sends, in a process of its own."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from toolwise.agent import Engine, Limits, Rollout, Sampling, run_agent
from toolwise.data import Message, Task, data_uri
from toolwise.data.parquet import read_tasks
from toolwise.errors import ToolwiseError
from toolwise.evaluation.metrics import Mode, RolloutScore, score
from toolwise.tools import Tool, open_tools

EngineFactory = Callable[[], Engine]
"""Opens the model; picklable, because every worker opens its own."""


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What every worker of an evaluation needs.

    Args:
        model: a checkpoint, or what opens an engine.
        benchmark: the items.
        corpus: what `text_search` looks in.
        isolation: lowest sandbox isolation accepted.
        sampling: decoding of each mode.
        max_turns: assistant turns per rollout.
        kept: items whose greedy rollouts are kept whole, whatever happens in them.
    """

    model: Path | EngineFactory
    benchmark: Path
    corpus: Path | None
    isolation: str
    sampling: dict[Mode, Sampling]
    max_turns: int
    kept: frozenset[str]


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """Answers to be given in one generation.

    Args:
        number: place in the evaluation.
        mode: how to answer.
        answers: (item's place in the benchmark, number of the sample).
        seed: of the sampling.
    """

    number: int
    mode: Mode
    answers: tuple[tuple[int, int], ...]
    seed: int


@dataclass(frozen=True, slots=True)
class AnsweredBatch:
    """What came of a batch: a score per answer, and some rollouts as `samples.jsonl` has them."""

    number: int
    scores: list[RolloutScore]
    samples: list[dict[str, Any]]


def main(handle: int) -> None:
    """Answer batches from the connection at `handle` until the parent closes it or dies."""
    with Connection(handle) as connection:
        asyncio.run(_serve(connection))


async def _serve(connection: Connection) -> None:
    tools: list[Tool] = []
    try:
        setup: WorkerSetup = connection.recv()
        tasks = read_tasks(setup.benchmark)
        tools = open_tools(setup.corpus, setup.isolation)
        engine = _open_engine(setup.model)
        while True:
            batch: AnswerBatch = connection.recv()
            connection.send(await _answer(batch, setup, tasks, tools, engine))
    except (EOFError, BrokenPipeError):
        return
    except ToolwiseError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(f"an evaluation worker failed:\n{traceback.format_exc()}"))
    finally:
        await asyncio.gather(*(tool.aclose() for tool in tools))


def _open_engine(model: Path | EngineFactory) -> Engine:
    if not isinstance(model, Path):
        return model()
    from toolwise.agent.transformers_engine import TransformersEngine  # imports torch

    return TransformersEngine.load(model)


async def _answer(
    batch: AnswerBatch, setup: WorkerSetup, tasks: list[Task], tools: list[Tool], engine: Engine
) -> AnsweredBatch:
    greedy = batch.mode == "greedy"
    rollouts = await run_agent(
        engine,
        [tasks[item] for item, _ in batch.answers],
        [] if batch.mode == "tools_off" else tools,
        sampling=replace(setup.sampling[batch.mode], seed=batch.seed),
        limits=Limits(max_turns=setup.max_turns),
    )
    scores = [
        score(rollout, batch.mode, sample)
        for rollout, (_, sample) in zip(rollouts, batch.answers, strict=True)
    ]
    samples: list[dict[str, Any]] = []
    if greedy:
        seen: set[tuple[str, bool]] = set()
        for rollout, row in zip(rollouts, scores, strict=True):
            kind = (row.ability, row.tool_calls > 0)
            if row.task_id in setup.kept or kind not in seen:
                samples.append(_sample(rollout, row))
            seen.add(kind)
    return AnsweredBatch(batch.number, scores, samples)


def _sample(rollout: Rollout, row: RolloutScore) -> dict[str, Any]:
    """A whole rollout as JSON, images as data URIs."""
    return {
        **asdict(row),
        "accepted": list(rollout.task.answer),
        "messages": [_portable(message) for message in rollout.messages],
        "turns": [
            {
                "seconds": turn.seconds,
                "prompt_tokens": turn.prompt_tokens,
                "completion_tokens": turn.completion_tokens,
            }
            for turn in rollout.turns
        ],
        "calls": [
            {
                "name": call.name,
                "arguments": call.arguments,
                "is_error": call.result.is_error,
                "seconds": call.result.seconds,
            }
            for call in rollout.calls
        ],
    }


def _portable(message: Message) -> Message:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_portable_part(part) for part in message["content"]]}


def _portable_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": data_uri(part["image"])}}
