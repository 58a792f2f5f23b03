"""Published data in its own formats, one small file per format.

A new format is a module with `read_row(row, number, file)` and an entry in `_format`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolwise.data.parquet import (
    Rejects,
    column_names,
    iterate_tasks,
    iterate_trajectories,
    rejection_reason,
    table_rows,
)
from toolwise.data.sources import openai_jsonl, sharegpt, verl_parquet
from toolwise.data.task import Task, Trajectory
from toolwise.errors import InputError
from toolwise.storage import local_copy

ReadRow = Callable[[dict[str, Any], int, Path], Task | Trajectory]

_SUFFIXES = (".parquet", ".jsonl", ".json")


def published_trajectories(uri: str | Path, rejects: Rejects) -> Iterator[Trajectory]:
    """Trajectories at `uri` (file or folder; local, `s3://` or `hf://`) in any known format.

    Raises:
        InputError: nothing is there, or it is in no known format.
    """
    for file in _files(local_copy(uri)):
        if _is_ours(file, "messages"):
            yield from iterate_trajectories(file, rejects)
            continue
        for number, record in _records(file, rejects):
            if isinstance(record, Trajectory):
                yield record
            else:
                rejects.add(str(file), number, "a question without a conversation")


def published_tasks(uri: str | Path, rejects: Rejects) -> Iterator[Task]:
    """Tasks at `uri`, of conversations too; arguments as `published_trajectories`."""
    for file in _files(local_copy(uri)):
        if _is_ours(file, "question"):
            yield from iterate_tasks(file, rejects)
            continue
        for _, record in _records(file, rejects):
            yield record.task if isinstance(record, Trajectory) else record


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES)
    if not files:
        raise InputError(f"{path}: no {', '.join(_SUFFIXES)} file is there")
    return files


def _is_ours(file: Path, column: str) -> bool:
    """Whether `toolwise.data.parquet` wrote the file."""
    return file.suffix == ".parquet" and {"answer_type", column} <= set(column_names(file))


def _records(file: Path, rejects: Rejects) -> Iterator[tuple[int, Task | Trajectory]]:
    for number, row in _rows(file, rejects):
        try:
            record = _format(row)(row, number, file)
        except (InputError, ValidationError) as error:
            rejects.add(str(file), number, rejection_reason(error))
        else:
            yield number, record


def _format(row: dict[str, Any]) -> ReadRow:
    if row.keys() >= verl_parquet.COLUMNS:
        return verl_parquet.read_row
    if openai_jsonl.is_openai(row):
        return openai_jsonl.read_row
    if "messages" in row or "conversations" in row:
        return sharegpt.read_row
    raise InputError(f"no known format has the columns {sorted(row)}")


def _rows(file: Path, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix == ".parquet":
        yield from enumerate(table_rows(file))
        return
    if file.suffix == ".json":
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is not JSON: {error}") from error
        if not isinstance(rows, list):
            raise InputError(f"{file} is not a list of conversations")
    else:
        rows = file.read_text(encoding="utf-8").splitlines()
    for number, row in enumerate(rows):
        try:
            parsed = json.loads(row) if isinstance(row, str) else row
        except ValueError as error:
            rejects.add(str(file), number, f"not JSON: {error}")
            continue
        if isinstance(parsed, dict):
            yield number, parsed
        else:
            rejects.add(str(file), number, "not an object")
