"""Pipeline runs and their steps, as MLflow runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import ArrowInvalid, parquet
from pydantic import BaseModel

from toolwise.errors import BackendError
from toolwise.evaluation.metrics import Summary, flatten
from toolwise.storage import content_digest
from toolwise.tracking import entries
from toolwise.tracking.connection import Connection
from toolwise.tracking.delivery import (
    ATTEMPT_TAG,
    STEP_TAG,
)
from toolwise.tracking.entries import PipelineRun
from toolwise.tracking.provenance import provenance
from toolwise.tracking.sender import Sender
from toolwise.tracking.spool import Spool

_DIGEST = 32
"""MLflow keeps 36 characters of a digest."""


class DataFile(NamedTuple):
    """A data file as MLflow knows it."""

    name: str
    digest: str


def end_pipeline_run(
    run: PipelineRun,
    *,
    failure: str | None = None,
    cancelled: bool = False,
    by_steps: bool = False,
    last: str | None = None,
    uri: str | None = None,
) -> None:
    """Close the parent run; steps cut off are `KILLED`.

    Args:
        run: the pipeline run.
        failure: why it did not succeed; None where it did, which makes it `FINISHED`.
        cancelled: somebody ended it, which makes it `KILLED` rather than `FAILED`.
        by_steps: where steps failed, their reasons stand for `failure`.
        last: with `by_steps`, the step that a run which succeeded has finished, for where `failure`
            does not say that it failed; empty for any.
        uri: see `Connection`.
    """
    connection = Connection(uri)
    spool = Spool.new(connection.uri)
    state: entries.State = "FINISHED" if failure is None else "KILLED" if cancelled else "FAILED"
    spool.append(
        entries.EndPipeline(
            run=run, state=state, failure=failure, by_steps=by_steps, last=last, ended=_now()
        )
    )
    Sender(spool, connection).close()


@contextmanager
def step(
    parent: PipelineRun,
    name: str,
    *,
    params: BaseModel | Mapping[str, Any] | None = None,
    attempt: str | None = None,
    uri: str | None = None,
) -> Iterator[Run]:
    """The nested run of one step; an exception marks it `FAILED` with its message and goes on.

    An earlier attempt at the same step that was killed is marked `KILLED`. Where MLflow is away,
    the step is on record as soon as it is back.

    Args:
        parent: the pipeline run.
        name: the step's.
        params: its settings.
        attempt: what two attempts at the same work have in common; by default the step's name.
        uri: see `Connection`.

    Raises:
        BackendError: MLflow answers and refuses the run, or the spool cannot be written.
    """
    connection = Connection(uri)
    spool = Spool.new(connection.uri)
    tags = {**provenance(), STEP_TAG: name}
    if attempt is not None:
        tags[ATTEMPT_TAG] = attempt
    spool.append(entries.OpenRun(parent=parent, name=name, tags=tags, started=_now()))
    sender = Sender(spool, connection)
    sender.open()
    run = Run(spool, sender)
    try:
        run.params(params or {})
        yield run
    except BaseException as error:
        # What went wrong first is what a person has to read, not that the spool failed as well.
        with suppress(BackendError):
            run.end("FAILED" if isinstance(error, Exception) else "KILLED", _reason(error))
        raise
    run.end("FINISHED")


class Run:
    """What a step tells MLflow; nothing of it waits for MLflow unless it says so."""

    def __init__(self, spool: Spool, sender: Sender) -> None:
        self._spool = spool
        self._sender = sender

    @property
    def run_id(self) -> str:
        """MLflow's id; waits for MLflow, and raises `BackendError` where it is away."""
        return self._sender.opened().run_id

    @property
    def experiment_id(self) -> str:
        """Id of the experiment; waits for MLflow, and raises `BackendError` where it is away."""
        return self._sender.opened().experiment_id

    def params(self, params: BaseModel | Mapping[str, Any]) -> None:
        """Log settings; nested ones get dotted names."""
        if flat := dict(_flat(params)):
            self._spool.append(entries.Params(params=flat))

    def tag(self, key: str, value: str) -> None:
        """Say something about the run."""
        self._spool.append(entries.Tag(key=key, value=value))

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step of a curve."""
        now = _now()
        points = [entries.Point(key, float(value), step, now) for key, value in metrics.items()]
        self._spool.append(entries.Metrics(points=points))

    def flush(self) -> None:
        """Wait until MLflow has it all; raises `BackendError` where it is away."""
        self._sender.require()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or what a directory holds, under `folder` of the run's artifacts."""
        self._spool.append(entries.Artifact(file=self._spool.keep(path), folder=folder))

    def dataset(self, path: Path, context: str) -> DataFile:
        """Link a data file by name and digest; `context` is `training`, `evaluation`, …"""
        data = DataFile(path.name, content_digest(path)[:_DIGEST])
        self._spool.append(
            entries.Data(
                name=data.name,
                digest=data.digest,
                place=str(path.absolute()),
                context=context,
                rows=_rows(path),
            )
        )
        return data

    def reads_model(self, checkpoint: Path | str, name: str) -> str:
        """Link the checkpoint the step starts from, or measures.

        Args:
            checkpoint: its folder, or where it is served.
            name: what to call it, if no step has logged it before.

        Returns:
            Its digest.
        """
        return self._model(checkpoint, name, "input")

    def writes_model(
        self,
        checkpoint: Path,
        name: str,
        *,
        step: int = 0,
        tags: Mapping[str, str] | None = None,
        address: str = "",
    ) -> str:
        """Log a checkpoint the step has made and keeps.

        Args:
            checkpoint: its folder.
            name: `base`, `sft`, `hdpo`, ….
            step: training step it is from.
            tags: of the logged model.
            address: where it stands once this machine is gone; its folder without.

        Returns:
            Its digest.
        """
        return self._model(checkpoint, name, "output", step, tags, address)

    def evaluation(
        self, stage: str, directory: Path, benchmark: Path, checkpoint: Path | str
    ) -> str:
        """Log what `toolwise.evaluation.runner.evaluate` wrote, and wait until MLflow has it.

        The metrics are linked to the benchmark's digest and to the logged model, so that the UI
        compares checkpoints; the files are kept under `evaluation/`, where the registry finds a
        champion's scores; the sample rollouts become traces.

        Args:
            stage: `base`, `sft`, `hdpo`: the logged model's name, if it is new.
            directory: with `scores.jsonl`, `metrics.json` and `samples.jsonl`.
            benchmark: the items answered.
            checkpoint: the model that answered them, or where it is served.

        Returns:
            The logged model's id.

        Raises:
            BackendError: MLflow is away; what was measured is in `directory`.
        """
        from toolwise.tracking.traces import trace_samples

        data = self.dataset(benchmark, "evaluation")
        digest = self.reads_model(checkpoint, stage)
        summaries: dict[str, Summary] = json.loads((directory / "metrics.json").read_text())
        now = _now()
        points = [
            entries.Point(name, value, 0, now)
            for mode in ("greedy", "sampled")
            for name, value in flatten(summaries[mode], mode).items()
        ]
        self._spool.append(entries.Metrics(points=points, model=digest, dataset=data))
        self.artifact(directory, "evaluation")
        delivery = self._sender.require()
        model_id = delivery.model_id(digest)
        trace_samples(
            directory / "samples.jsonl", delivery.experiment_id, delivery.run_id, model_id
        )
        return model_id

    def end(self, state: entries.State, failure: str | None = None) -> None:
        """Close the run; what MLflow does not take in time, the next run sends."""
        self._spool.append(entries.EndRun(state=state, failure=failure, ended=_now()))
        self._sender.close()

    def _model(
        self,
        checkpoint: Path | str,
        name: str,
        role: entries.Role,
        step: int = 0,
        tags: Mapping[str, str] | None = None,
        address: str = "",
    ) -> str:
        place = str(checkpoint.absolute() if isinstance(checkpoint, Path) else checkpoint)
        digest = place
        if isinstance(checkpoint, Path) and checkpoint.exists():
            digest = content_digest(checkpoint)
        model = entries.Model(
            digest=digest,
            name=name,
            place=address or place,
            role=role,
            step=step,
            tags=dict(tags or {}),
        )
        self._spool.append(model)
        return digest


def _rows(path: Path) -> int | None:
    """Rows of a Parquet file; None of anything else."""
    try:
        return parquet.read_metadata(path).num_rows
    except (ArrowInvalid, OSError):
        return None


def _flat(params: BaseModel | Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    given = params.model_dump(mode="json") if isinstance(params, BaseModel) else params or {}
    return ((key, str(value)) for key, value in _leaves(given))


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _now() -> int:
    return int(time.time() * 1000)
