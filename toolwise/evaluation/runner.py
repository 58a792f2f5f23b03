"""Answer a benchmark with and without tools, and write what `metrics` makes of it.

Work is cut into batches that do not depend on each other. Each has a sampling seed of its own, so
the result is the same in one process or in several, in one go or resumed after a kill. A model
behind a server is asked for one answer at a time, many at once: each is a batch of its own.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from toolwise import __version__
from toolwise.agent import Sampling
from toolwise.agent.openai_engine import ServedModel
from toolwise.child_process import child_process
from toolwise.data import Task
from toolwise.data.parquet import iterate_tasks
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import (
    METRIC_VERSION,
    Mode,
    RolloutScore,
    solvable_items,
    summarise,
    write_scores,
)
from toolwise.evaluation.rollouts import benchmark_of, json_line
from toolwise.evaluation.served import answer_served
from toolwise.evaluation.worker import AnswerBatch, AnsweredBatch, EngineFactory, WorkerSetup
from toolwise.judge_endpoint import EndpointSettings
from toolwise.storage import atomic_directory, content_digest, local_copy
from toolwise.tools.search.settings import SearchSettings

KEPT_PER_ABILITY = 6
"""Items of each ability whose greedy rollouts are kept whole: the same for every checkpoint."""

Progress = Callable[[int, int, str], None]
"""Told answers done, answers in all, what is being done."""


class EvaluationSettings(BaseModel):
    """How a checkpoint is measured.

    Args:
        samples: answers per item at temperature 1 with tools on, beside the greedy one.
        counterfactual_samples: k answers per item with tools off; without any it is not known
            which items need a tool, and the rates that rest on it stay empty.
        counterfactual_temperature: of those; what a model knows is asked at the decoding settings
            it is used with, by default the ones published with Qwen3-VL.
        counterfactual_top_p: likewise.
        batch_size: answers per generation of a model in process.
        processes: its worker processes, each with one torch thread; does not change the result.
        concurrency: answers in flight of a model behind a server; does not change the result.
        timeout: seconds one such answer may take, tools and retries included.
        max_tokens: limit per assistant turn.
        max_turns: assistant turns per answer.
        isolation: lowest sandbox isolation accepted for `python`.
        search: the search tools; as the profile has it.
        judge: text model that scores where the benchmark asks for one; without it rules do, and
            the scores say so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(1, ge=0)
    counterfactual_samples: int = Field(8, ge=0)
    counterfactual_temperature: float = Field(0.7, gt=0)
    counterfactual_top_p: float = Field(0.8, gt=0, le=1)
    batch_size: int = Field(256, ge=1)
    processes: int = Field(1, ge=1)
    concurrency: int = Field(32, ge=1)
    timeout: float = Field(600.0, gt=0)
    max_tokens: int = Field(512, ge=1)
    max_turns: int = Field(4, ge=1)
    isolation: str = "bubblewrap"
    search: SearchSettings | None = None
    judge: EndpointSettings | None = None


EXECUTION: dict[str, Any] = {
    "processes": True,
    "concurrency": True,
    "timeout": True,
    "judge": {"timeout", "concurrency", "budget"},
}
"""Settings that do not change the result, as pydantic's `exclude` takes them."""


def evaluate(
    model: str | Path | EngineFactory | ServedModel,
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
            `solvable` without tools, the `benchmark`'s digest, the `metric_version`, settings and
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
    out_dir = out_dir.absolute()
    replies = out_dir.parent / f".{out_dir.name}.judge.jsonl"
    items = local_copy(benchmark)
    searched = None if corpus is None else local_copy(corpus)
    tasks = list(iterate_tasks(items, images=False))
    _check(tasks, items)
    setup = WorkerSetup(
        model=local_copy(model) if isinstance(model, str | Path) else model,
        benchmark=items,
        corpus=searched,
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
        kept=_kept_items(tasks),
        judge=settings.judge,
        judge_replies=replies,
    )
    cut = plan_single if isinstance(model, ServedModel) else plan
    batches = cut(tasks, settings, seed)
    total = sum(len(batch.answers) for batch in batches)
    with _WorkFile(out_dir.parent / f".{out_dir.name}.work.jsonl", setup, settings, seed) as work:
        left = [batch for batch in batches if batch.number not in work.finished]
        done = total - sum(len(batch.answers) for batch in left)
        if progress:
            progress(done, total, "starting")

        def keep(answered: AnsweredBatch) -> None:
            nonlocal done
            work.add(answered)
            done += len(answered.scores)
            if progress:
                progress(done, total, batches[answered.number].mode.replace("_", " "))

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
            for answered in _answer(setup, left, settings.processes):
                keep(answered)
        answers = [work.finished[batch.number] for batch in batches]
        _publish(out_dir, tasks, answers, settings, seed, setup)
        work.discard()
        replies.unlink(missing_ok=True)


def plan(tasks: Sequence[Task], settings: EvaluationSettings, seed: int) -> list[AnswerBatch]:
    """Every answer to be given, in batches of items of one kind where that can be had."""
    batches: list[AnswerBatch] = []
    for mode, answers in _answers(tasks, settings):
        for place, start in enumerate(range(0, len(answers), settings.batch_size)):
            part = tuple(answers[start : start + settings.batch_size])
            batches.append(AnswerBatch(len(batches), mode, part, _seed(seed, mode, place)))
    return batches


def plan_single(
    tasks: Sequence[Task], settings: EvaluationSettings, seed: int
) -> list[AnswerBatch]:
    """Every answer to be given, each alone, with a seed that is the item's own."""
    batches: list[AnswerBatch] = []
    for mode, answers in _answers(tasks, settings):
        for item, sample in answers:
            own = _seed(seed, mode, tasks[item].id, sample)
            batches.append(AnswerBatch(len(batches), mode, ((item, sample),), own))
    return batches


def _answers(
    tasks: Sequence[Task], settings: EvaluationSettings
) -> Iterator[tuple[Mode, list[tuple[int, int]]]]:
    """Of each mode, the answers (item, sample), items of one ability together."""
    by_ability = sorted(range(len(tasks)), key=lambda item: tasks[item].ability)
    samples: dict[Mode, int] = {
        "greedy": 1,
        "sampled": settings.samples,
        "tools_off": settings.counterfactual_samples,
    }
    for mode, count in samples.items():
        yield mode, [(item, sample) for item in by_ability for sample in range(count)]


def _seed(*identity: object) -> int:
    """31 bits that follow from `identity`."""
    digest = hashlib.sha256(" ".join(map(str, identity)).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _check(tasks: Sequence[Task], path: Path) -> None:
    if not tasks:
        raise InputError(f"{path}: the benchmark has no items")
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise InputError(f"{path}: the id {task.id!r} stands for two items; ids must be unique")
        seen.add(task.id)


def _kept_items(tasks: Sequence[Task]) -> frozenset[str]:
    by_ability: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        by_ability[task.ability].append(task.id)
    return frozenset(item for ids in by_ability.values() for item in ids[:KEPT_PER_ABILITY])


class _WorkFile:
    """Finished batches, a line each, beside the output until that is published.

    Its first line says of which evaluation; one left by another is started over. A last line cut
    short by a kill is dropped.
    """

    def __init__(
        self, path: Path, setup: WorkerSetup, settings: EvaluationSettings, seed: int
    ) -> None:
        self.path = path
        self.finished: dict[int, AnsweredBatch] = {}
        identity = {
            "version": __version__,
            "model": _model_identity(setup.model),
            "benchmark": content_digest(setup.benchmark),
            "corpus": setup.corpus and content_digest(setup.corpus),
            "settings": settings.model_dump(exclude=EXECUTION),
            "seed": seed,
        }
        self._identity = json.dumps(identity)

    def __enter__(self) -> _WorkFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text("utf-8").split("\n") if self.path.exists() else []
        except OSError as error:
            raise InputError(
                f"{self.path.parent} cannot be written to: {error.strerror}"
            ) from error
        kept = [f"{self._identity}\n"]
        if lines[:1] == [self._identity]:
            # What follows the last line break is empty, or was cut short.
            read = TypeAdapter(AnsweredBatch).validate_json
            for line in lines[1:-1]:
                batch = read(line)
                self.finished[batch.number] = batch
                kept.append(f"{line}\n")
        self._file = self.path.open("w", encoding="utf-8")
        self._write(*kept)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, batch: AnsweredBatch) -> None:
        """Keep a finished batch."""
        self.finished[batch.number] = batch
        self._write(json_line(batch))

    def discard(self) -> None:
        """Drop the file: its content has been published."""
        self.path.unlink()

    def _write(self, *lines: str) -> None:
        self._file.writelines(lines)
        self._file.flush()


def _model_identity(model: Path | EngineFactory | ServedModel) -> str:
    """What tells one model from another; of a server all that is known is its address and name."""
    match model:
        case Path():
            return content_digest(model)
        case ServedModel():
            return str(model)
        case _:
            return hashlib.sha256(pickle.dumps(model)).hexdigest()


def _answer(
    setup: WorkerSetup, batches: Sequence[AnswerBatch], processes: int
) -> Iterator[AnsweredBatch]:
    """Hand the batches to worker processes as they become free, and yield what comes back."""
    waiting = deque(batches)
    busy: set[Connection] = set()
    try:
        with ExitStack() as workers:
            for _ in range(min(processes, len(waiting))):
                connection = workers.enter_context(_worker(setup))
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
def _worker(setup: WorkerSetup) -> Iterator[Connection]:
    """A worker process; it ends when the connection is closed, also by this process's death."""
    # One thread each: two one-thread processes do more than one with two.
    with child_process("toolwise.evaluation.worker:main", {"OMP_NUM_THREADS": "1"}) as connection:
        connection.send(setup)
        yield connection


def _publish(
    out_dir: Path,
    tasks: Sequence[Task],
    batches: Sequence[AnsweredBatch],
    settings: EvaluationSettings,
    seed: int,
    setup: WorkerSetup,
) -> None:
    scores = [row for batch in batches for row in batch.scores]
    used = () if isinstance(setup.model, ServedModel) else ("torch", "transformers")
    metrics = {
        "greedy": summarise(scores, "greedy"),
        "sampled": summarise(scores, "sampled"),
        "items": len(tasks),
        "solvable": sum(solvable_items(scores).values()),
        "benchmark": content_digest(setup.benchmark),
        "sources": Counter(task.source for task in tasks),
        "metric_version": METRIC_VERSION,
        "seed": seed,
        "settings": settings.model_dump(),
        "versions": {"toolwise": __version__, **{package: version(package) for package in used}},
        **_published_score(tasks, scores),
    }
    if isinstance(setup.model, ServedModel):
        metrics["model"] = setup.model.model_dump(include={"base_url", "model"})
    with atomic_directory(out_dir) as room:
        write_scores(room / "scores.jsonl", scores)
        (room / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        with (room / "samples.jsonl").open("w", encoding="utf-8") as file:
            for sample in _samples(tasks, batches):
                file.write(json_line(sample))


def _published_score(
    tasks: Sequence[Task], scores: Sequence[RolloutScore]
) -> dict[str, dict[str, Any]]:
    """The greedy answers as their benchmark's authors put them together, under `published`.

    Empty where the items are not those of one published benchmark.
    """
    names = {task.source for task in tasks}
    benchmark = benchmark_of(names.pop()) if len(names) == 1 else None
    if benchmark is None:
        return {}
    by_id = {task.id: task for task in tasks}
    greedy = [row for row in scores if row.mode == "greedy"]
    return {
        "published": {
            "name": tasks[0].source,
            "title": benchmark.title,
            "url": benchmark.url,
            "figures": benchmark.aggregate([(by_id[row.task_id], row) for row in greedy]),
            "scored_by": dict(sorted(Counter(row.scored_by for row in greedy).items())),
        }
    }


def _samples(tasks: Sequence[Task], batches: Sequence[AnsweredBatch]) -> Iterator[dict[str, Any]]:
    """The kept items, and where none of those calls (or abstains) the first that does."""
    kept = _kept_items(tasks)
    found = [sample for batch in batches for sample in batch.samples]
    chosen = [sample for sample in found if sample["task_id"] in kept]
    yield from chosen
    kinds = {(sample["ability"], sample["tool_calls"] > 0) for sample in chosen}
    for sample in found:
        kind = (sample["ability"], sample["tool_calls"] > 0)
        if kind not in kinds:
            kinds.add(kind)
            yield sample
