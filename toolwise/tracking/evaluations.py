"""The evaluations that pipeline runs have left in MLflow, with their intervals."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from toolwise.errors import InputError
from toolwise.tracking.connection import Connection

_STEP = "evaluate "
_NEWEST = 10
"""Runs with an evaluation that are compared where none is named."""


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """A checkpoint as a pipeline run measured it.

    Args:
        run: the pipeline run's name.
        stage: `base`, `sft`, `hdpo`.
        metrics: `metrics.json`.
    """

    run: str
    stage: str
    metrics: dict[str, Any]


def read_evaluations(
    connection: Connection, experiment: str, runs: Sequence[str] = ()
) -> list[StoredEvaluation]:
    """The evaluations of pipeline runs, in the order of the runs and then of their steps.

    Args:
        connection: MLflow.
        experiment: the profile's name.
        runs: names or ids of pipeline runs; without any, the newest that have an evaluation. One
            that is still training, or failed before, has none.

    Raises:
        InputError: there is no such experiment or run, or it has no evaluation.
        BackendError: MLflow is away.
    """
    found = connection.request(lambda client: client.get_experiment_by_name(experiment))
    if found is None:
        raise InputError(f"{connection.name} has no experiment {experiment!r}; name a --profile")
    stored = connection.request(
        lambda client: client.search_runs(
            [found.experiment_id], order_by=["attributes.start_time DESC"], max_results=10_000
        )
    )
    children: dict[str, list[Run]] = {}
    for run in reversed(stored):
        children.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    parents = [run for run in stored if run.info.run_id in children]
    evaluated = {run.info.run_id: _last_of_each(children[run.info.run_id]) for run in parents}
    chosen = [_named(name, parents, experiment) for name in runs]
    for parent in chosen:
        if not evaluated[parent.info.run_id]:
            raise InputError(f"pipeline run {_name(parent)!r} has no evaluation")
    if not runs:
        chosen = [parent for parent in parents if evaluated[parent.info.run_id]][:_NEWEST]
    if not chosen:
        raise InputError(f"experiment {experiment!r} has no pipeline run with an evaluation yet")
    return [
        StoredEvaluation(_name(parent), stage, _metrics(connection, run))
        for parent in chosen
        for stage, run in evaluated[parent.info.run_id].items()
    ]


def _named(name: str, parents: Sequence[Run], experiment: str) -> Run:
    for run in parents:
        if name in (run.info.run_id, run.info.run_name):
            return run
    known = ", ".join(_name(run) for run in parents[:_NEWEST])
    raise InputError(
        f"experiment {experiment!r} has no pipeline run {name!r}; there are: {known or 'none'}"
    )


def _name(parent: Run) -> str:
    return parent.info.run_name or parent.info.run_id


def _last_of_each(steps: Sequence[Run]) -> dict[str, Run]:
    """The last finished evaluation of each stage."""
    return {
        run.data.tags["toolwise.step"].removeprefix(_STEP): run
        for run in steps
        if run.data.tags.get("toolwise.step", "").startswith(_STEP)
        and run.info.status == "FINISHED"
    }


def _metrics(connection: Connection, run: Run) -> dict[str, Any]:
    run_id, path = run.info.run_id, "evaluation/metrics.json"
    with tempfile.TemporaryDirectory() as folder:
        file = connection.request(lambda c: c.download_artifacts(run_id, path, folder))
        return json.loads(Path(file).read_text(encoding="utf-8"))
