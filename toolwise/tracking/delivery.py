"""From a spool to MLflow: each entry may be delivered again, and is there once all the same.

A delivery whose reply was lost, or whose process died before it was marked as sent, is repeated.
MLflow itself drops a metric it has (same key, step, time and value), a parameter it has, a file it
has; runs and logged models are looked up by a tag before they are made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
)
from mlflow.tracking import MlflowClient

from toolwise.errors import BackendError
from toolwise.tracking.connection import Connection
from toolwise.tracking.entries import (
    Artifact,
    Data,
    EndPipeline,
    EndRun,
    Entry,
    Metrics,
    Model,
    OpenRun,
    Params,
    PipelineRun,
    State,
    Tag,
)
from toolwise.tracking.provenance import provenance
from toolwise.tracking.spool import Spool, is_live

FAILURE_TAG = "toolwise.failure"
"""Run tag with the reason a step or a pipeline run failed."""

STEP_TAG = "toolwise.step"
"""Tag of a nested run with the name of its step."""

PIPELINE_RUN_TAG = "toolwise.pipeline_run"
"""Tag of a parent run with the pipeline run's own name, by which its steps find it."""

DIGEST_TAG = "toolwise.digest"
"""Tag of a logged model with the digest of its checkpoint."""

ATTEMPT_TAG = "toolwise.attempt"
"""Tag of a step's run; attempts at the same work have the same value."""

SETTLING_SECONDS = 2.0
"""How long steps that open a parent run at the same moment wait for each other: longer than MLflow
takes for a reply."""

_AGREED_TAG = "toolwise.agreed"
_SPOOL_TAG = "toolwise.spool"
_PARAMS = 100
_POINTS = 1000  # most that MLflow takes at once
_REASON = 5000


class Delivery:
    """Takes one spool's entries to MLflow.

    Args:
        connection: MLflow.
        spool: whose entries they are.
        live: the step is running in this process, and not the rest of one that died.
    """

    run_id: str
    experiment_id: str

    def __init__(self, connection: Connection, spool: Spool, *, live: bool) -> None:
        self._client = connection.client
        self._connection = connection
        self._spool = spool
        self._live = live
        self._models: dict[str, str] = {}

    def open(self, first: Entry) -> None:
        """Find or make the run that the spool is about."""
        if not isinstance(first, OpenRun):
            return
        parent_id = pipeline_run_id(self._client, self._connection, first.parent)
        if self._live:
            _reopen(self._client, parent_id)
        self.experiment_id = self._client.get_run(parent_id).info.experiment_id
        tagged = f"tags.`{_SPOOL_TAG}` = '{self._spool.name}'"
        found = self._client.search_runs([self.experiment_id], tagged)
        if found:
            self.run_id = found[0].info.run_id
            return
        tags = first.tags | {"mlflow.parentRunId": parent_id, _SPOOL_TAG: self._spool.name}
        run = self._client.create_run(self.experiment_id, first.started, tags, first.name)
        self.run_id = run.info.run_id

    def end_earlier_attempts(self, first: Entry) -> None:
        """Mark runs of the same step `KILLED` whose process died without a word.

        What such a process has left in a spool has to be sent before: it may have finished.
        """
        if isinstance(first, OpenRun):
            parent_id = self._client.get_run(self.run_id).data.tags["mlflow.parentRunId"]
            kill_unfinished(self._client, self._connection, parent_id, first, self.run_id)

    def deliver(self, entry: Entry) -> None:
        """Tell MLflow what one entry says."""
        client = self._client
        match entry:
            case Params():
                params = [Param(key, value) for key, value in entry.params.items()]
                for at in range(0, len(params), _PARAMS):
                    client.log_batch(self.run_id, params=params[at : at + _PARAMS])
            case Tag():
                client.set_tag(self.run_id, entry.key, entry.value)
            case Metrics():
                self._metrics(entry)
            case Data():
                source = json.dumps({"uri": entry.place})
                profile = None if entry.rows is None else json.dumps({"rows": entry.rows})
                dataset = Dataset(entry.name, entry.digest, "local", source, profile=profile)
                tag = InputTag("mlflow.data.context", entry.context)
                client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])
            case Model():
                self._model(entry)
            case Artifact():
                file = self._spool.folder / entry.file
                keep = client.log_artifacts if file.is_dir() else client.log_artifact
                keep(self.run_id, str(file), entry.folder)
            case EndRun():
                end(client, self.run_id, entry.state, entry.failure, entry.ended)
            case EndPipeline():
                run_id = pipeline_run_id(client, self._connection, entry.run)
                kill_unfinished(client, self._connection, run_id)
                end(client, run_id, *_ending(client, run_id, entry), entry.ended)
            case OpenRun():
                pass  # done by `open`

    def cut_off(self) -> None:
        """The process that filled the spool died without a last word."""
        end(self._client, self.run_id, "KILLED", "the process was killed")

    def model_id(self, digest: str) -> str:
        """Id of the logged model that is the checkpoint of this digest.

        Raises:
            BackendError: it is gone.
        """
        if digest not in self._models:
            found = find_model(self._client, self.experiment_id, digest)
            if found is None:
                raise BackendError(f"{self._connection.name}: the logged model {digest} is gone")
            self._models[digest] = found.model_id
        return self._models[digest]

    def _metrics(self, entry: Metrics) -> None:
        model = None if entry.model is None else self.model_id(entry.model)
        name, digest = entry.dataset or (None, None)
        metrics = [
            Metric(p.key, p.value, p.timestamp, p.step, model, name, digest, self.run_id)
            for p in entry.points
        ]
        for at in range(0, len(metrics), _POINTS):
            self._client.log_batch(self.run_id, metrics=metrics[at : at + _POINTS])

    def _model(self, entry: Model) -> None:
        client = self._client
        model = find_model(client, self.experiment_id, entry.digest)
        if model is None:
            model = client.create_logged_model(
                self.experiment_id,
                name=entry.name,
                source_run_id=self.run_id if entry.role == "output" else None,
                params={"checkpoint": entry.place},
                tags={DIGEST_TAG: entry.digest, "toolwise.stage": entry.name, **entry.tags},
                model_type="agent",
            )
        if str(model.status) != "READY":
            client.finalize_logged_model(model.model_id, "READY")
        self._models[entry.digest] = model.model_id
        run = client.get_run(self.run_id)
        if entry.role == "input":
            linked = [known.model_id for known in (run.inputs.model_inputs if run.inputs else ())]
            if model.model_id not in linked:
                client.log_inputs(self.run_id, models=[LoggedModelInput(model.model_id)])
        else:
            linked = [known.model_id for known in run.outputs.model_outputs] if run.outputs else []
            if model.model_id not in linked:
                client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, entry.step)])


def merged(entries: Sequence[Entry]) -> Entry:
    """Entries that `belong_together` as one."""
    first = entries[0]
    if isinstance(first, Metrics):
        points = [
            point for entry in entries if isinstance(entry, Metrics) for point in entry.points
        ]
        return first.model_copy(update={"points": points})
    return first


def belong_together(entry: Entry, following: Entry) -> bool:
    """Whether both can be delivered by one request: metrics of the same thing."""
    return (
        isinstance(entry, Metrics)
        and isinstance(following, Metrics)
        and (entry.model, entry.dataset) == (following.model, following.dataset)
    )


def find_model(client: MlflowClient, experiment_id: str, digest: str) -> LoggedModel | None:
    """The logged model that is the checkpoint of this digest; None where there is none."""
    query = f"tags.`{DIGEST_TAG}` = '{digest}'"
    found = client.search_logged_models([experiment_id], query, max_results=1)
    return next(iter(found), None)


def pipeline_run_id(client: MlflowClient, connection: Connection, run: PipelineRun) -> str:
    """Id of the parent run, made if it is new; steps that begin at the same moment agree on one.

    MLflow lets two runs have one name, so each step looks again after a while for what the others
    have made, and all keep the same.
    """
    mine = None
    found = _parents(client, run)
    if not found:
        tags = provenance() | {PIPELINE_RUN_TAG: run.name}
        experiment_id = find_experiment(client, connection, run.experiment).experiment_id
        mine = client.create_run(experiment_id, tags=tags, run_name=run.name).info.run_id
    if not found or _AGREED_TAG not in found[0].data.tags:
        time.sleep(SETTLING_SECONDS)
        found = _parents(client, run)
    kept = found[0].info.run_id
    if mine == kept:
        client.set_tag(kept, _AGREED_TAG, "true")
    elif mine is not None:
        client.delete_run(mine)
    return kept


def _parents(client: MlflowClient, run: PipelineRun) -> list[Run]:
    """The parent runs of this name: first what is agreed on, or else what will be."""
    experiment = client.get_experiment_by_name(run.experiment)
    if experiment is None:
        return []
    query = f"tags.`{PIPELINE_RUN_TAG}` = '{run.name}'"
    found = client.search_runs([experiment.experiment_id], query)
    return sorted(found, key=lambda one: (_AGREED_TAG not in one.data.tags, one.info.run_id))


def _reopen(client: MlflowClient, run_id: str) -> None:
    """Have a parent run that had ended running again."""
    stored = client.get_run(run_id)
    if stored.info.status != "RUNNING":
        client.update_run(run_id, "RUNNING")
    if FAILURE_TAG in stored.data.tags:
        client.delete_tag(run_id, FAILURE_TAG)


def _ending(client: MlflowClient, run_id: str, entry: EndPipeline) -> tuple[State, str | None]:
    """How the parent run ended and why: as the entry says, or as the last attempts of its steps."""
    if not entry.by_steps:
        return entry.state, entry.failure
    experiment_id = client.get_run(run_id).info.experiment_id
    query = f"tags.mlflow.parentRunId = '{run_id}'"
    nested = client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"])
    # Variants of an ablation have steps of one name, which are not attempts at the same work.
    attempts = {run.data.tags.get(ATTEMPT_TAG) or _step(run): run for run in nested}
    failed = [
        f"{_step(run)}: {run.data.tags.get(FAILURE_TAG, run.info.status.lower())}"
        for run in attempts.values()
        if run.info.status != "FINISHED"
    ]
    steps = {_step(run) for run in nested}
    if not failed and entry.last is not None and (not entry.last or entry.last in steps):
        return "FINISHED", None
    return entry.state, "; ".join(failed) or entry.failure


def _step(run: Run) -> str:
    """The step that a nested run is of."""
    return run.data.tags.get(STEP_TAG) or str(run.info.run_name)


def find_experiment(client: MlflowClient, connection: Connection, name: str) -> Experiment:
    """The experiment; a new one on an SQLite file gets its artifacts beside it."""
    found = client.get_experiment_by_name(name)
    if found is None:
        file = connection.sqlite_file
        place = None if file is None else (file.parent / "mlflow-artifacts").absolute().as_uri()
        try:
            client.create_experiment(name, place)
        except Exception:
            # Another process may have made it since.
            if client.get_experiment_by_name(name) is None:
                raise
        found = client.get_experiment_by_name(name)
        assert found is not None
    return found


def kill_unfinished(
    client: MlflowClient,
    connection: Connection,
    parent_id: str,
    step: OpenRun | None = None,
    own_run: str = "",
) -> None:
    """Mark nested runs whose process died without a word.

    A run whose spool a process of this machine owns goes on, and is left alone.

    Args:
        client, connection: MLflow.
        parent_id: the parent run.
        step: attempts at this step only; by default of all steps.
        own_run: the run that is not meant.
    """
    query = f"tags.mlflow.parentRunId = '{parent_id}' and attributes.status = 'RUNNING'"
    if step is not None:
        query += f" and attributes.run_name = '{step.name}'"
        if attempt := step.tags.get(ATTEMPT_TAG):
            query += f" and tags.`{ATTEMPT_TAG}` = '{attempt}'"
    experiment_id = client.get_run(parent_id).info.experiment_id
    for run in client.search_runs([experiment_id], query):
        spool = run.data.tags.get(_SPOOL_TAG, "")
        if run.info.run_id != own_run and not (spool and is_live(connection.uri, spool)):
            end(client, run.info.run_id, "KILLED", "the process was killed")


def end(
    client: MlflowClient, run_id: str, state: str, failure: str | None, ended: int | None = None
) -> None:
    """Close a run, and say why where it failed."""
    if failure is not None:
        client.set_tag(run_id, FAILURE_TAG, failure[:_REASON])
    elif FAILURE_TAG in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, FAILURE_TAG)
    client.set_terminated(run_id, state, ended)
