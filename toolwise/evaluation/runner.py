"""Answer a benchmark with and without tools, and write what `metrics` makes of it.

Work is cut into batches that do not depend on each other. Each has a sampling seed of its own, so
the result is the same in one process or in several, on one machine or on one per benchmark, in one
go or resumed after a kill. A model behind a server is asked for one answer at a time, many at once:
each is a batch of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from toolwise.agent import Sampling
from toolwise.agent.openai_engine import ServedModel
from toolwise.agent.vllm_process import VLLMSettings, vllm_process
from toolwise.child_process import child_process
from toolwise.data import Task
from toolwise.data.parquet import iterate_tasks
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.plan import plan, plan_single, source_of
from toolwise.evaluation.results import kept_items, publish_results
from toolwise.evaluation.served import answer_served
from toolwise.evaluation.settings import EXECUTION, EvaluationSettings
from toolwise.evaluation.work_file import Identity, WorkFile, comparable, read_answers
from toolwise.evaluation.worker import AnswerBatch, AnsweredBatch, EngineFactory, WorkerSetup
from toolwise.progress import Progress
from toolwise.storage import content_digest, local_copy, publish

__all__ = ["EXECUTION", "EvaluationSettings", "answer_source", "evaluate", "gather", "plan"]

Model = str | Path | EngineFactory | ServedModel


def evaluate(
    model: Model,
    benchmark: str | Path,
    corpus: str | Path | None,
    out_dir: Path,
    settings: EvaluationSettings,
    seed: int = 0,
    *,
    progress: Progress | None = None,
) -> None:
    """Measure one model; a killed evaluation goes on from the answers it has.

    Args:
        model: a checkpoint, a model behind a server, or a picklable function that opens an engine.
        benchmark: items (Parquet); ids must be unique.
        corpus: JSONL that `text_search` looks in.
        out_dir: gets `scores.jsonl` (a `RolloutScore` per line), `metrics.json` (summaries of
            `greedy` and `sampled` answers, number of `items`, in all and by `sources`, and of those
            `solvable` without tools, digests of the `checkpoint` (of a served model its name and
            address), of the `benchmark` and of the `corpus`, the `metric_version`, settings and
            versions; of a published benchmark also its own `score`, as `published`) and
            `samples.jsonl` (whole greedy rollouts); all or none. Until then answers gather, a line
            each time some come, in `.<name>.work.jsonl` beside it.
        settings: how.
        seed: of the sampling.
        progress: told how far it is.

    Raises:
        InputError: an input is missing or wrong.
        BackendError: the model, a tool backend, the judge or a worker process failed; what they
            failed on is not scored, and what came before is kept.
    """
    with _answered(model, benchmark, corpus, out_dir, settings, seed, progress) as given:
        served = model if isinstance(model, ServedModel) else None
        publish_results(out_dir, given.tasks, given.batches, given.identity, settings, served)


def answer_source(
    model: str | Path | EngineFactory,
    benchmark: str | Path,
    corpus: str | Path | None,
    out: Path,
    settings: EvaluationSettings,
    seed: int = 0,
    *,
    source: str,
    progress: Progress | None = None,
) -> None:
    """Give those answers of an evaluation whose items are from one source.

    The answers of all sources make, by `gather`, what `evaluate` would have written.

    Args:
        model: as of `evaluate`, like everything that is not named here.
        benchmark: all items, of which `Task.source` says whose they are.
        corpus: likewise.
        out: file that gets the answers, all or none; until then they gather in
            `.<name>.work.jsonl` beside it.
        settings: likewise.
        seed: likewise.
        source: the benchmark whose items are answered.
        progress: likewise.

    Raises:
        InputError: no item is from `source`, or an input is missing or wrong.
        BackendError: as of `evaluate`.
    """
    with _answered(model, benchmark, corpus, out, settings, seed, progress, source) as given:
        publish(given.file, out)


def gather(
    answers: Sequence[Path],
    benchmark: str | Path,
    out_dir: Path,
    settings: EvaluationSettings,
    seed: int = 0,
) -> None:
    """Put the answers of all sources together: what `evaluate` writes for the same items.

    Args:
        answers: files that `answer_source` wrote, in any order.
        benchmark: the items.
        out_dir: as of `evaluate`.
        settings: they were given with.
        seed: likewise.

    Raises:
        InputError: they are of different evaluations, or answers are missing.
    """
    items = local_copy(benchmark)
    tasks = list(iterate_tasks(items, images=False))
    asked = content_digest(items), comparable(settings), seed
    found: dict[int, AnsweredBatch] = {}
    identity: Identity | None = None
    for path in answers:
        one, batches = read_answers(path)
        if (one.benchmark, one.settings, one.seed) != asked or one != (identity or one):
            raise InputError(f"{path}: these answers are of another evaluation than the others")
        identity = one
        found |= {batch.number: batch for batch in batches}
    planned = plan(tasks, settings, seed)
    missing = sorted({source_of(b, tasks) for b in planned if b.number not in found})
    if missing or identity is None:
        raise InputError(f"answers to the items of {', '.join(missing)} are missing")
    publish_results(out_dir, tasks, [found[b.number] for b in planned], identity, settings)


class _Given(NamedTuple):
    """Answers, all there; `file` holds them until the block that got them ends well."""

    tasks: list[Task]
    batches: list[AnsweredBatch]
    identity: Identity
    file: Path


@contextmanager
def _answered(
    model: Model,
    benchmark: str | Path,
    corpus: str | Path | None,
    out: Path,
    settings: EvaluationSettings,
    seed: int,
    progress: Progress | None,
    source: str | None = None,
) -> Iterator[_Given]:
    """The answers to all items, or to those of one source, with what an earlier attempt left."""
    out = out.absolute()
    items = local_copy(benchmark)
    tasks = list(iterate_tasks(items, images=False))
    _check(tasks, items)
    setup = WorkerSetup(
        model=local_copy(model) if isinstance(model, str | Path) else model,
        benchmark=items,
        corpus=None if corpus is None else local_copy(corpus),
        isolation=settings.isolation,
        search=settings.search,
        max_turns=settings.max_turns,
        sampling={
            "greedy": Sampling(max_tokens=settings.max_tokens),
            "sampled": Sampling(temperature=1.0, max_tokens=settings.max_tokens),
            "tools_off": Sampling(
                temperature=settings.counterfactual_temperature,
                top_p=settings.counterfactual_top_p,
                max_tokens=settings.max_tokens,
            ),
        },
        kept=kept_items(tasks),
        judge=settings.judge,
        judge_replies=out.parent / f".{out.name}.judge.jsonl",
    )
    cut = plan_single if isinstance(model, ServedModel) else plan
    planned = {batch.number: batch for batch in cut(tasks, settings, seed)}
    if source is not None:
        planned = {n: batch for n, batch in planned.items() if source_of(batch, tasks) == source}
        if not planned:
            raise InputError(f"{items}: no item is from {source!r}")
    identity = Identity.of(setup, settings, seed)
    with WorkFile(out.parent / f".{out.name}.work.jsonl", identity) as work:
        _answer_all(model, setup, planned, work, settings, progress)
        yield _Given(tasks, [work.finished[number] for number in planned], identity, work.path)
        work.discard()
        if setup.judge_replies is not None:
            setup.judge_replies.unlink(missing_ok=True)


def _answer_all(
    model: Model,
    setup: WorkerSetup,
    planned: dict[int, AnswerBatch],
    work: WorkFile,
    settings: EvaluationSettings,
    progress: Progress | None,
) -> None:
    """Give the answers that the work file does not hold yet."""
    left = [batch for batch in planned.values() if batch.number not in work.finished]
    total = sum(len(batch.answers) for batch in planned.values())
    done = total - sum(len(batch.answers) for batch in left)
    if progress:
        progress(done, total, "starting")

    def keep(answered: AnsweredBatch) -> None:
        nonlocal done
        work.add(answered)
        done += len(answered.scores)
        if progress:
            progress(done, total, planned[answered.number].mode.replace("_", " "))

    if isinstance(model, ServedModel):
        answer_served(
            model,
            setup,
            left,
            keep,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
        )
    else:
        with _beside(setup, settings.vllm if left else None) as told:
            for answered in _answer(told, left, settings.processes):
                keep(answered)


@contextmanager
def _beside(setup: WorkerSetup, vllm: VLLMSettings | None) -> Iterator[WorkerSetup]:
    """The set-up with a vLLM that answers for the checkpoint, where there is to be one."""
    if vllm is None or not isinstance(setup.model, Path):
        yield setup
        return
    with vllm_process(setup.model, vllm) as address:
        yield replace(setup, vllm=address)


def _check(tasks: Sequence[Task], path: Path) -> None:
    if not tasks:
        raise InputError(f"{path}: the benchmark has no items")
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise InputError(f"{path}: the id {task.id!r} stands for two items; ids must be unique")
        seen.add(task.id)


def _answer(
    setup: WorkerSetup, batches: Sequence[AnswerBatch], processes: int
) -> Iterator[AnsweredBatch]:
    """Hand the batches to worker processes as they become free, and yield what comes back."""
    waiting = deque(batches)
    busy: set[Connection] = set()
    try:
        with ExitStack() as workers:
            for number in range(min(processes, len(waiting))):
                connection = workers.enter_context(_worker(setup, number))
                connection.send(waiting.popleft())
                busy.add(connection)
            while busy:
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    reply = ready.recv()
                    if isinstance(reply, Exception):
                        raise reply
                    if waiting:
                        ready.send(waiting.popleft())
                    else:
                        busy.remove(ready)
                    yield reply
    except (EOFError, ConnectionError) as error:
        raise BackendError(
            "an evaluation worker died (killed, or out of memory); run the step again, it goes on "
            "from the batches it has"
        ) from error


@contextmanager
def _worker(setup: WorkerSetup, number: int) -> Iterator[Connection]:
    """A worker process; it ends when the connection is closed, also by this process's death."""
    # One thread each: two one-thread processes do more than one with two.
    environment = {"OMP_NUM_THREADS": "1", "LOCAL_RANK": str(number)}
    with child_process("toolwise.evaluation.worker:main", environment) as connection:
        connection.send(setup)
        yield connection
