"""The model registry: one registered model, the alias `champion` on the version that serves.

A version is linked to the run that evaluated it, where its scores stay for the paired comparison
with the next challenger.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import OVERALL
from toolwise.promotion.decision_log import Entry, entry
from toolwise.promotion.evidence import Evaluation
from toolwise.promotion.gate import Decision
from toolwise.promotion.succession import CHAMPION, PREVIOUS, Standing, Succession, overtaken
from toolwise.tracking import Connection

DECISION_TAG = "toolwise.decision"
REASONS_TAG = "toolwise.reasons"
CHECKPOINT_TAG = "toolwise.checkpoint"
"""Tag of a version with where its checkpoint stands; a server takes no folder as the source."""


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of the model, and how it was evaluated.

    Args:
        version: its number.
        source: where its checkpoint stands.
        run_id: the run that evaluated it.
        evaluation: what it answered, and how.
    """

    version: str
    source: str
    run_id: str
    evaluation: Evaluation


class Registry:
    """One registered model.

    Args:
        name: the profile's name.
        connection: MLflow.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self._connection = connection
        self._succession = Succession(name, connection)

    def register(self, run_id: str, checkpoint: str) -> str:
        """Make a version of a checkpoint, evaluated by the run `run_id`.

        The overall metrics of the run become its tags. The same run and checkpoint give the same
        version, so a step that is run again registers nothing twice.

        Args:
            run_id: the run.
            checkpoint: its address (`s3://…`), or its folder. For a folder the version's source is
                the logged model that the run measured: an MLflow server refuses folders, which it
                cannot look into.

        Returns:
            The version's number.
        """
        request = self._connection.request
        self._succession.found()
        query = f"name='{self.name}' and run_id='{run_id}'"
        run = request(lambda client: client.get_run(run_id))
        tags = {k: f"{v:.4f}" for k, v in run.data.metrics.items() if f"/{OVERALL}/" in k}
        tags[CHECKPOINT_TAG] = checkpoint
        model_id = next(
            (model.model_id for model in (run.inputs.model_inputs if run.inputs else ())), None
        )
        is_folder = "://" not in checkpoint
        source = f"models:/{model_id}" if is_folder and model_id else checkpoint

        def find_or_create(client: MlflowClient) -> ModelVersion:
            # Also when the request is repeated: only the reply to the first may have been lost.
            for existing in client.search_model_versions(query):
                if _checkpoint(existing) == checkpoint:
                    return existing
            return client.create_model_version(self.name, source, run_id, tags, model_id=model_id)

        return str(request(find_or_create).version)

    def describe(self, version: str, description: str, tags: Mapping[str, str]) -> None:
        """Give `version` its description, the short form of the model card, and tags."""
        request = self._connection.request
        request(lambda client: client.update_model_version(self.name, version, description))
        for key, value in {**tags, "toolwise.profile": self.name}.items():
            self._tag(version, key, value)

    def standing(self) -> Standing:
        """Who is champion; a promotion that was cut off is finished first."""
        return self._succession.standing()

    def seen(self) -> Standing:
        """Who is champion; a decision is made against this, and nothing changes."""
        return self._succession.seen()

    def record(
        self, version: str, decision: Decision, standing: Standing | None = None
    ) -> Decision:
        """Log the decision, tag `version` with it and, if it is `promote`, make it the champion.

        Args:
            version: what was judged.
            decision: how.
            standing: against whom, as `seen` said before it was judged; by default at this moment.

        Returns:
            The decision as it stands: a promotion becomes a rejection with that reason where
            another version has become champion in the meantime.
        """
        standing = standing or self.seen()
        if decision.decision == "promote" and standing.champion != version:
            taken = self._succession.move(
                standing,
                entry(
                    "promote",
                    version,
                    standing.champion,
                    f"accuracy compared with the {decision.reference}",
                    champion=version,
                    previous=standing.champion,
                ),
            )
            if taken is not None:
                decision = decision.rejected("champion", overtaken(taken, standing))
        if decision.decision == "reject":
            why = "\n".join(decision.reasons)
            self._succession.note(entry("reject", version, standing.champion, why))
        self._succession.settle()  # a promotion that was cut off may be this version's own
        self._tag(version, DECISION_TAG, decision.decision)
        self._tag(version, REASONS_TAG, "\n".join(decision.reasons)[:5000])
        return decision

    def decisions(self) -> list[Entry]:
        """Every decision and rollback, oldest first."""
        return self._succession.entries()

    def champion(self) -> RegisteredVersion | None:
        """The version that serves, with its scores; None where none was ever promoted.

        Raises:
            BackendError: its scores are gone from its run.
        """
        number = self.seen().champion
        return None if number is None else self.version(number)

    def champion_run(self) -> str | None:
        """Id of the run that evaluated the version that serves; None where there is none."""
        number = self.seen().champion
        if number is None:
            return None
        version = self._connection.request(lambda c: c.get_model_version(self.name, number))
        return str(version.run_id)

    def version(self, number: str) -> RegisteredVersion:
        """A version, with its scores.

        Raises:
            BackendError: there is none of that number, or its scores are gone from its run.
        """
        version = self._connection.request(lambda c: c.get_model_version(self.name, number))
        with tempfile.TemporaryDirectory() as folder:
            scores = self._artifact(version, "scores.jsonl", folder)
            self._artifact(version, "metrics.json", folder)
            return RegisteredVersion(
                version=str(version.version),
                source=_checkpoint(version),
                run_id=str(version.run_id),
                evaluation=Evaluation.read(scores.parent),
            )

    def rollback(self, reason: str) -> str:
        """Make the previous champion the champion again and tag the version that leaves.

        Returns:
            The version that serves now.

        Raises:
            InputError: there is no previous champion.
        """
        standing = self.standing()
        if standing.previous is None:
            raise InputError(
                f"registered model {self.name!r} has no version with the alias {PREVIOUS!r}, so "
                "there is nothing to roll back to"
            )
        leaving, back = standing.champion, standing.previous
        taken = self._succession.move(
            standing, entry("rollback", back, leaving, reason, champion=back)
        )
        if taken is not None:
            raise InputError(overtaken(taken, standing))
        if leaving is not None and leaving != back:
            self._tag(leaving, DECISION_TAG, "rolled back")
            self._tag(leaving, REASONS_TAG, reason[:5000])
        return back

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


def _checkpoint(version: ModelVersion) -> str:
    """Where it stands; a version that somebody registered by hand says so in its source alone."""
    return version.tags.get(CHECKPOINT_TAG) or str(version.source)
