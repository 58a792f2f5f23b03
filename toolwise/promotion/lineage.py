"""Where a checkpoint comes from, as MLflow's links between runs, data and logged models tell it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlflow.entities import Run

from toolwise.tracking import DIGEST_TAG, Connection


@dataclass(frozen=True, slots=True)
class UsedData:
    """A data file: name, digest, what for, and its rows, where they are known."""

    name: str
    digest: str
    context: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class Stage:
    """A run that made a checkpoint, or measured one.

    Args:
        name: the step's.
        run_id: of its MLflow run.
        commit: of the code; empty where it is not known.
        params: its settings, dotted.
        data: what it read.
        checkpoint: digest of the checkpoint it made or measured; empty where none is on record.
        licence: of the checkpoint it made, as that says itself; empty where it does not.
    """

    name: str
    run_id: str
    commit: str
    params: dict[str, str]
    data: tuple[UsedData, ...]
    checkpoint: str
    licence: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """How a model came to be.

    Args:
        pipeline_run: id of the parent run; empty where there is none.
        model_id: the logged model that was measured; None where none is on record.
        evaluation: the run that measured it.
        trainings: the runs that made it, last first.
    """

    pipeline_run: str
    model_id: str | None
    evaluation: Stage
    trainings: tuple[Stage, ...]

    def tags(self) -> dict[str, str]:
        """What a registered version carries of it.

        Data is named by the step that read it and its file: two steps may read files of one name.
        """
        stages = (self.evaluation, *self.trainings)
        data = {
            f"toolwise.data.{stage.name}/{used.name}": used.digest
            for stage in stages
            for used in stage.data
        }
        facts = {
            "toolwise.pipeline_run": self.pipeline_run,
            "toolwise.git_commit": self.evaluation.commit,
            "toolwise.digest": self.evaluation.checkpoint,
        }
        return {**{key: value for key, value in facts.items() if value}, **data}


def read_lineage(connection: Connection, run_id: str) -> Lineage:
    """The lineage of the model that the run `run_id` measured.

    Raises:
        BackendError: MLflow is away, or does not know the run.
    """
    measured = connection.request(lambda client: client.get_run(run_id))
    trainings: list[Stage] = []
    model_id = first = _input_model(measured)
    evaluation = _stage(measured, *_checkpoint(connection, first))
    while model_id is not None:
        model = connection.request(lambda c, known=model_id: c.get_logged_model(known))
        source = model.source_run_id
        # A server says "" where a database says None.
        if not source or source in (stage.run_id for stage in trainings):
            break
        run = connection.request(lambda client, known=source: client.get_run(known))
        trainings.append(_stage(run, *_checkpoint(connection, model_id)))
        model_id = _input_model(run)
    parent = measured.data.tags.get("mlflow.parentRunId", "")
    return Lineage(parent, first, evaluation, tuple(trainings))


def _checkpoint(connection: Connection, model_id: str | None) -> tuple[str, str]:
    """Digest and licence of a logged model."""
    if model_id is None:
        return "", ""
    tags = connection.request(lambda client: client.get_logged_model(model_id)).tags
    return tags.get(DIGEST_TAG, ""), tags.get("toolwise.licence", "")


def _input_model(run: Run) -> str | None:
    return next((model.model_id for model in (run.inputs.model_inputs if run.inputs else ())), None)


def _stage(run: Run, checkpoint: str, licence: str) -> Stage:
    tags = run.data.tags
    return Stage(
        name=tags.get("toolwise.step", run.info.run_name or ""),
        run_id=run.info.run_id,
        commit=tags.get("mlflow.source.git.commit", ""),
        params=run.data.params,
        data=tuple(
            UsedData(
                used.dataset.name,
                used.dataset.digest,
                next((tag.value for tag in used.tags if tag.key == "mlflow.data.context"), ""),
                json.loads(used.dataset.profile or "{}").get("rows"),
            )
            for used in (run.inputs.dataset_inputs if run.inputs else ())
        ),
        checkpoint=checkpoint,
        licence=licence,
    )
