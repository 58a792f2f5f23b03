"""The model registry: one registered model, the alias `champion` on the version that serves.

A version is linked to the run that evaluated it, where its scores stay for the paired comparison
with the next challenger.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import OVERALL, RolloutScore, read_scores
from toolwise.promotion.gate import Decision
from toolwise.tracking import Connection

CHAMPION = "champion"
PREVIOUS = "previous"

DECISION_TAG = "toolwise.decision"
REASONS_TAG = "toolwise.reasons"


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that serves.

    Args:
        version: its number.
        source: where its checkpoint stands.
        run_id: the run that evaluated it.
        benchmark: digest of the benchmark it answered.
        scores: its answers.
    """

    version: str
    source: str
    run_id: str
    benchmark: str
    scores: list[RolloutScore]


class Registry:
    """One registered model.

    Args:
        name: the profile's name.
        connection: MLflow.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self._connection = connection

    def register(self, run_id: str, source: str) -> str:
        """Make a version of the checkpoint at `source`, evaluated by the run `run_id`.

        The overall metrics of the run become its tags. The same run and source give the same
        version, so a step that is run again registers nothing twice.

        Returns:
            The version's number.
        """
        request = self._connection.request
        if self._model() is None:
            request(lambda client: client.create_registered_model(self.name))
        query = f"name='{self.name}' and run_id='{run_id}'"
        for existing in request(lambda client: client.search_model_versions(query)):
            if existing.source == source:
                return str(existing.version)
        run = request(lambda client: client.get_run(run_id))
        tags = {k: f"{v:.4f}" for k, v in run.data.metrics.items() if f"/{OVERALL}/" in k}
        models = run.outputs.model_outputs if run.outputs else []
        model_id = models[0].model_id if models else None
        created = request(
            lambda client: client.create_model_version(
                self.name, source, run_id, tags, model_id=model_id
            )
        )
        return str(created.version)

    def record(self, version: str, decision: Decision) -> None:
        """Tag `version` with the decision and, if it is `promote`, make it the champion."""
        reasons = "\n".join(decision.reasons)[:5000]
        for key, value in ((DECISION_TAG, decision.decision), (REASONS_TAG, reasons)):
            self._tag(version, key, value)
        if decision.decision == "promote":
            self._crown(version)

    def champion(self) -> Champion | None:
        """The version that serves, with its scores; None where none was ever promoted.

        Raises:
            BackendError: its scores are gone from its run.
        """
        version = self._aliased(CHAMPION)
        if version is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            scores = self._artifact(version, "scores.jsonl", folder)
            metrics = self._artifact(version, "metrics.json", folder)
            return Champion(
                version=str(version.version),
                source=str(version.source),
                run_id=str(version.run_id),
                benchmark=json.loads(metrics.read_text(encoding="utf-8"))["benchmark"],
                scores=read_scores(scores),
            )

    def rollback(self, reason: str) -> str:
        """Make the previous champion the champion again and tag the version that leaves.

        Returns:
            The version that serves now.

        Raises:
            InputError: there is no previous champion.
        """
        previous, leaving = self._aliased(PREVIOUS), self._aliased(CHAMPION)
        if previous is None:
            raise InputError(
                f"registered model {self.name!r} has no version with the alias {PREVIOUS!r}, so "
                "there is nothing to roll back to"
            )
        if leaving is not None and leaving.version != previous.version:
            self._tag(str(leaving.version), DECISION_TAG, "rolled back")
            self._tag(str(leaving.version), REASONS_TAG, reason[:5000])
        version = str(previous.version)
        request = self._connection.request
        request(lambda client: client.set_registered_model_alias(self.name, CHAMPION, version))
        request(lambda client: client.delete_registered_model_alias(self.name, PREVIOUS))
        return version

    def _crown(self, version: str) -> None:
        """Move the aliases; `previous` first, so that a killed step can be run again."""
        request = self._connection.request
        leaving = self._aliased(CHAMPION)
        if leaving is not None:
            old = str(leaving.version)
            if old == version:
                return
            request(lambda client: client.set_registered_model_alias(self.name, PREVIOUS, old))
        request(lambda client: client.set_registered_model_alias(self.name, CHAMPION, version))

    def _model(self) -> RegisteredModel | None:
        found = self._connection.request(
            lambda client: client.search_registered_models(f"name='{self.name}'")
        )
        return next(iter(found), None)

    def _aliased(self, alias: str) -> ModelVersion | None:
        model = self._model()
        if model is None or alias not in model.aliases:
            return None
        version = str(model.aliases[alias])
        return self._connection.request(lambda client: client.get_model_version(self.name, version))

    def _tag(self, version: str, key: str, value: str) -> None:
        self._connection.request(
            lambda client: client.set_model_version_tag(self.name, version, key, value)
        )

    def _artifact(self, version: ModelVersion, name: str, folder: str) -> Path:
        path = f"evaluation/{name}"
        run_id = str(version.run_id)
        try:
            return Path(
                self._connection.request(lambda c: c.download_artifacts(run_id, path, folder))
            )
        except (OSError, BackendError) as error:
            raise BackendError(
                f"champion {self.name} version {version.version}: {path} cannot be read from run "
                f"{run_id} ({error}); restore it, or take the alias {CHAMPION!r} away"
            ) from error
