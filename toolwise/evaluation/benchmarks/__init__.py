"""Benchmarks by name, one module each.

A published benchmark's module has a constant `BENCHMARK = PublishedBenchmark(…)`; one that is made
here rather than downloaded (`signboard`) has a function `make(folder, seed) -> Benchmark`.
`docs/adding-a-benchmark.md` walks through both.
"""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError

from toolwise.data import CorruptImage, Task, open_image
from toolwise.data.parquet import Rejects, rejection_reason, table_rows, write_tasks
from toolwise.errors import InputError
from toolwise.evaluation.metrics import RolloutScore
from toolwise.storage import local_files

_SUFFIXES = (".parquet", ".jsonl", ".json", ".tsv")

Row = dict[str, Any]
"""A published row: column → value, as Parquet, JSON or TSV gives it."""

Aggregate = Callable[[Sequence[tuple[Task, RolloutScore]]], dict[str, float | int]]
"""Items with their scored answers (one answer each, all of one mode) → figures.

Shares lie in [0, 1]. The headline, what the benchmark's authors report as its score, is `score`;
the others are parts of it (a category, a count). Items without an answer are not passed in.
"""


class Score(NamedTuple):
    """What an answer was worth, and who says so.

    Args:
        correct: whether it is right.
        by: `rule`, `math-verify`, `judge`, …; where a rule stood in for the judge that the
            benchmark asks for, `rule (no judge)`.
    """

    correct: bool
    by: str


class AnswerJudge(Protocol):
    """A text model that helps to score: it extracts an answer, or holds one against a rubric."""

    def __call__(self, prompt: str, form: str = r".*\S.*") -> str:
        """The model's reply to `prompt`; may be called from several threads.

        Args:
            prompt: all the model is told.
            form: regular expression the whole reply must match (`.` matches line breaks too); one
                that does not is no reply.

        Raises:
            BackendError: no reply after the last attempt; nothing is scored.
        """
        ...


class Scorer(Protocol):
    """Scores one answer of a benchmark; a function."""

    def __call__(self, task: Task, answer: str | None, judge: AnswerJudge | None) -> Score:
        """Score `answer` (None: the model gave none), with the judge where there is one.

        Raises:
            BackendError: the judge failed; the answer is neither right nor wrong.
        """
        ...


@dataclass(frozen=True)
class PublishedBenchmark:
    """Where a benchmark is published, and how it asks, scores and aggregates.

    Args:
        title: as in the paper's table.
        url: its dataset card.
        source: its rows: `hf://datasets/owner/name/<file, folder or glob>`.
        read: a published row and its number to the `Task`s it holds; `InputError` (or pydantic's
            `ValidationError`) where it cannot be read. `Task.metadata` carries what scoring and
            aggregation need, and under `prompt` the question as the benchmark words it for a
            model, where that is not just the question and its options.
        score: right or wrong.
        aggregate: all answers to figures.
    """

    title: str
    url: str
    source: str
    read: Callable[[Row, int], Iterable[Task]]
    score: Scorer
    aggregate: Aggregate


class Benchmark(NamedTuple):
    """What `toolwise.evaluation.runner.evaluate` answers: items, and what it may search.

    `rejected` counts the published rows that could not be read; `rejects.jsonl` beside `items`
    says which and why.
    """

    items: Path
    corpus: Path | None
    rejected: int = 0


def benchmark_names() -> list[str]:
    """The benchmarks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def published(name: str) -> PublishedBenchmark | None:
    """The published benchmark `name`; None for one that is made here (graded by `grade`).

    Raises:
        InputError: there is no such benchmark.
    """
    return getattr(_module(name), "BENCHMARK", None)


def make_benchmark(name: str, folder: Path, seed: int = 0, source: str | None = None) -> Benchmark:
    """Put the items of the benchmark `name` into `folder`, as Parquet of `Task`s.

    Args:
        name: one of `benchmark_names()`; also the items' `Task.source`.
        folder: where they go.
        seed: of one that is made here.
        source: the published rows, if not where the benchmark says: a file, a folder or a glob;
            local, `s3://` or `hf://`.

    Raises:
        InputError: there is no such benchmark, or `source` holds no row that can be read.
        BackendError: the place `source` names failed for good.
    """
    benchmark = published(name)
    if benchmark is None:
        if source is not None:
            raise InputError(f"the benchmark {name!r} is made here; it takes no source")
        return _module(name).make(folder, seed)
    place = source or benchmark.source
    rejects = Rejects(folder / "rejects.jsonl")
    items = folder / "items.parquet"
    count = write_tasks(items, _tasks(name, benchmark, place, rejects))
    if count == 0:
        items.unlink()
        raise InputError(
            f"{place}: no item of {benchmark.title} could be read "
            f"({rejects.count} rows rejected; see {rejects.path})"
            if rejects.count
            else f"{place}: there are no rows"
        )
    return Benchmark(items, None, rejects.count)


def _module(name: str) -> ModuleType:
    if name not in benchmark_names():
        raise InputError(
            f"there is no benchmark {name!r}; there are: {', '.join(benchmark_names())}"
        )
    return importlib.import_module(f"{__name__}.{name}")


def _tasks(
    name: str, benchmark: PublishedBenchmark, place: str, rejects: Rejects
) -> Iterator[Task]:
    seen: set[str] = set()
    number = 0
    files = [file for file in local_files(place) if file.suffix in _SUFFIXES]
    if not files:
        raise InputError(f"{place}: no {', '.join(_SUFFIXES)} file is there")
    for file in files:
        for number_in_file, row in enumerate(_rows(file)):
            try:
                tasks = list(benchmark.read(row, number))
                for task in tasks:
                    if task.source != name:
                        raise InputError(f"an item's `source` is {task.source!r}, not {name!r}")
                    if task.id in seen:
                        raise InputError(f"the id {task.id!r} stands for two items")
                    _check_images(task)
            except (InputError, ValidationError) as error:
                rejects.add(str(file), number_in_file, rejection_reason(error))
            else:
                seen.update(task.id for task in tasks)
                yield from tasks
            number += 1


def _check_images(task: Task) -> None:
    """Refuse pictures that are none; only headers are read, since some decode to 100 MB."""
    for place, image in enumerate(task.images):
        try:
            with open_image(image):
                pass
        except CorruptImage as error:
            raise InputError(f"image {place} cannot be read: {error.reason}") from error


def _rows(file: Path) -> Iterator[Row]:
    """Rows of a Parquet, JSON-lines, JSON or TSV file."""
    try:
        match file.suffix:
            case ".parquet":
                yield from table_rows(file)
            case ".jsonl":
                with file.open(encoding="utf-8") as lines:
                    yield from (json.loads(line) for line in lines if line.strip())
            case ".json":
                yield from json.loads(file.read_text(encoding="utf-8"))
            case _:
                csv.field_size_limit(sys.maxsize)  # a cell holds an image
                with file.open(encoding="utf-8", newline="") as lines:
                    yield from csv.DictReader(lines, delimiter="\t")
    except (ValueError, csv.Error) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
