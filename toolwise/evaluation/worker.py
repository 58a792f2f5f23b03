"""One evaluation worker: answers the batches its parent sends, in a process of its own."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from toolwise.agent import Engine, Limits, Sampling, run_agent
from toolwise.agent.openai_engine import ServedModel
from toolwise.agent.vllm_process import engine_at
from toolwise.data import Task
from toolwise.data.parquet import read_tasks
from toolwise.errors import ToolwiseError
from toolwise.evaluation.benchmarks import AnswerJudge
from toolwise.evaluation.metrics import Mode, RolloutScore
from toolwise.evaluation.rollouts import score_rollout, whole_rollout
from toolwise.evaluation.scoring.answer_judge import LlmAnswerJudge
from toolwise.judge.endpoint import EndpointSettings
from toolwise.tools import Tool, open_tools
from toolwise.tools.search.settings import SearchSettings

JUDGED_AT_ONCE = 16
"""Answers of a batch that the judge is asked about at a time."""

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
        search: the search tools.
        sampling: decoding of each mode.
        max_turns: assistant turns per rollout.
        kept: items whose greedy rollouts are kept whole, whatever happens in them.
        judge: text model that helps to score.
        judge_replies: file its replies are kept in.
        vllm: address of a server that has loaded the checkpoint, and answers for it.
    """

    model: Path | EngineFactory | ServedModel
    benchmark: Path
    corpus: Path | None
    isolation: str
    search: SearchSettings | None
    sampling: dict[Mode, Sampling]
    max_turns: int
    kept: frozenset[str]
    judge: EndpointSettings | None = None
    judge_replies: Path | None = None
    vllm: str | None = None


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


def open_judge(setup: WorkerSetup) -> AnswerJudge | None:
    """The judge, where there is one."""
    return None if setup.judge is None else LlmAnswerJudge(setup.judge, setup.judge_replies)


def main(handle: int) -> None:
    """Answer batches from the connection at `handle` until the parent closes it or dies."""
    with Connection(handle) as connection:
        asyncio.run(_serve(connection))


async def _serve(connection: Connection) -> None:
    tools: list[Tool] = []
    try:
        setup: WorkerSetup = connection.recv()
        tasks = read_tasks(setup.benchmark)
        tools = open_tools(setup.corpus, setup.isolation, search=setup.search)
        engine = _open_engine(setup.model, setup.vllm)
        judge = open_judge(setup)
        while True:
            batch: AnswerBatch = connection.recv()
            connection.send(await _answer(batch, setup, tasks, tools, engine, judge))
    except (EOFError, BrokenPipeError):
        return
    except ToolwiseError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(f"an evaluation worker failed:\n{traceback.format_exc()}"))
    finally:
        await asyncio.gather(*(tool.aclose() for tool in tools))


def _open_engine(model: Path | EngineFactory | ServedModel, vllm: str | None) -> Engine:
    assert not isinstance(model, ServedModel)  # those are asked from the parent process
    if not isinstance(model, Path):
        return model()
    if vllm is not None:
        return engine_at(vllm, model)
    from toolwise.agent.transformers_engine import TransformersEngine  # imports torch

    return TransformersEngine.load(model)


async def _answer(
    batch: AnswerBatch,
    setup: WorkerSetup,
    tasks: list[Task],
    tools: list[Tool],
    engine: Engine,
    judge: AnswerJudge | None,
) -> AnsweredBatch:
    rollouts = await run_agent(
        engine,
        [tasks[item] for item, _ in batch.answers],
        [] if batch.mode == "tools_off" else tools,
        sampling=replace(setup.sampling[batch.mode], seed=batch.seed),
        limits=Limits(max_turns=setup.max_turns),
    )
    with ThreadPoolExecutor(JUDGED_AT_ONCE if judge else 1) as threads:
        numbers = [sample for _, sample in batch.answers]
        one = partial(score_rollout, mode=batch.mode, judge=judge)
        scores = list(threads.map(lambda rollout, n: one(rollout, sample=n), rollouts, numbers))
    samples: list[dict[str, Any]] = []
    if batch.mode == "greedy":
        seen: set[tuple[str, bool]] = set()
        for rollout, row in zip(rollouts, scores, strict=True):
            kind = (row.ability, row.tool_calls > 0)
            if row.task_id in setup.kept or kind not in seen:
                samples.append(whole_rollout(rollout, row))
            seen.add(kind)
    return AnsweredBatch(batch.number, scores, samples)
