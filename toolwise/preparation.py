"""Published data sets, brought into the form every later step works on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from toolwise.data import Task, Trajectory
from toolwise.data.parquet import Rejects, iterate_tasks, write_tasks, write_trajectories
from toolwise.data.sources import published_tasks, published_trajectories
from toolwise.data.sources.corpus import published_passages
from toolwise.errors import InputError
from toolwise.progress import Progress
from toolwise.storage import atomic_file

FILES = {
    "trajectories": "raw_trajectories.parquet",
    "tasks": "rl_tasks.parquet",
    "benchmark": "benchmark.parquet",
    "corpus": "corpus.jsonl",
}
"""What is prepared, and the file it becomes."""

ROWS_PER_REPORT = 100


class PublishedSet(BaseModel):
    """A data set somebody has published; its path alone will do.

    Args:
        path: a file, folder or glob; local, `s3://…` or `hf://…`. Of a benchmark also its name.
        source: its format, a key of `toolwise.data.sources.SOURCES` or the dotted name of a module
            with a `SOURCE`; rows are recognised where it is not given. Of a benchmark that lies at
            `path` also its name.
        images: folder or zip archive of the pictures, where they do not lie beside the data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    source: str | None = None
    images: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class PublishedData(BaseModel):
    """Data somebody has published. Several sets of a kind are read one after another.

    Args:
        trajectories: raw tool-using trajectories.
        tasks: prompts for reinforcement learning.
        benchmark: held-out tasks: published benchmarks by name, or tasks in any format.
        corpus: passages for `text_search`, at a path, `s3://…` or `hf://…`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trajectories: tuple[PublishedSet, ...] = ()
    tasks: tuple[PublishedSet, ...] = ()
    benchmark: tuple[PublishedSet, ...] = ()
    corpus: str | None = None

    @field_validator("trajectories", "tasks", "benchmark", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value


def prepare_published(
    published: PublishedData, folder: Path, seed: int, progress: Progress | None = None
) -> int:
    """Read published data in its own formats and write it in ours, as `FILES` names it.

    What stands in `folder` already is not read again; each file appears whole or not at all. Rows
    that cannot be read are named in `<kind>.rejects.jsonl` beside it, with file, row and reason.

    Args:
        published: what to read; kinds that are not given are left out.
        folder: where it goes.
        seed: of a benchmark that is made here.
        progress: told kinds done, kinds in all, and the rows of the one at work.

    Returns:
        How many rows could not be read.

    Raises:
        InputError: nothing is at a path, a file is damaged, or no row of a kind could be read.
        BackendError: an endpoint failed for good.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind in FILES if getattr(published, kind)]
    for done, kind in enumerate(kinds):

        def told(rows: Iterable[Any], done: int = done, kind: str = kind) -> Iterator[Any]:
            for number, row in enumerate(rows):
                if progress and number % ROWS_PER_REPORT == 0:
                    progress(done, len(kinds), f"{kind}: {number} rows")
                yield row

        target = folder / FILES[kind]
        rejects = Rejects(folder / f"{kind}.rejects.jsonl") if not target.exists() else None
        if rejects is None:
            continue
        match kind:
            case "trajectories":
                trajectories = _trajectories(published.trajectories, rejects)
                count = write_trajectories(target, told(trajectories))
            case "tasks":
                count = write_tasks(target, told(_tasks(published.tasks, rejects)))
            case "benchmark":
                items = _benchmark(published.benchmark, folder, seed, rejects)
                count = write_tasks(target, told(items))
            case _:
                assert published.corpus is not None
                count = _write_corpus(target, told(published_passages(published.corpus, rejects)))
        if count == 0:
            target.unlink()
            raise InputError(f"{kind}: no row could be read{_first_reason(rejects)}")
    if published.corpus is None:
        # A run that searches elsewhere has no passages of its own; its steps still take the file.
        (folder / FILES["corpus"]).touch()
    return sum(_lines(path) for path in folder.glob("*.rejects.jsonl"))


def _trajectories(sets: Iterable[PublishedSet], rejects: Rejects) -> Iterator[Trajectory]:
    names = _Names()
    for one in sets:
        for row in published_trajectories(one.path, rejects, one.source, one.images):
            yield replace(row, task=names.distinct(row.task))


def _tasks(sets: Iterable[PublishedSet], rejects: Rejects) -> Iterator[Task]:
    names = _Names()
    for one in sets:
        yield from map(names.distinct, published_tasks(one.path, rejects, one.source, one.images))


def _benchmark(
    sets: Iterable[PublishedSet], folder: Path, seed: int, rejects: Rejects
) -> Iterator[Task]:
    from toolwise.evaluation.benchmarks import benchmark_names, make_benchmark

    names = _Names()
    known = benchmark_names()
    for one in sets:
        if one.path in known or one.source in known:
            name, place = (one.path, None) if one.source is None else (one.source, one.path)
            made = make_benchmark(name, folder / "benchmarks" / name, seed, place)
            if made.rejected:
                lines = (made.items.parent / "rejects.jsonl").read_text(encoding="utf-8")
                for line in map(json.loads, lines.splitlines()):
                    rejects.add(line["file"], line["row"], line["reason"])
            items = iterate_tasks(made.items)
        else:
            items = published_tasks(one.path, rejects, one.source, one.images)
        yield from map(names.distinct, items)


class _Names:
    """Keeps ids apart: sets are told apart by their files' names, which may be alike."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def distinct(self, task: Task) -> Task:
        """The task, under an id no task before it has."""
        name, again = task.id, 1
        while name in self._taken:
            again += 1
            name = f"{task.id}#{again}"
        self._taken.add(name)
        return task if name == task.id else replace(task, id=name)


def _write_corpus(target: Path, passages: Iterable[dict[str, str]]) -> int:
    count = 0
    with atomic_file(target) as partial, partial.open("w", encoding="utf-8") as lines:
        for passage in passages:
            lines.write(json.dumps(passage, ensure_ascii=False) + "\n")
            count += 1
    return count


def _first_reason(rejects: Rejects) -> str:
    if not rejects.count:
        return ""
    with rejects.path.open(encoding="utf-8") as lines:
        first = json.loads(next(lines))
    return (
        f" ({rejects.count} rejected; {first['file']}, row {first['row']}: {first['reason']};"
        f" all in {rejects.path})"
    )


def _lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)
