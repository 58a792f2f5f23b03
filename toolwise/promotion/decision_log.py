"""The append-only log of a registered model: every decision and every rollback, in order.

Entry n is a parameter of an MLflow run that is there for the log alone. MLflow refuses to change a
parameter, on every backend and between processes, so entry n can be written once: of two pipelines
that promote at the same time one writes it, and the other sees who was first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, NamedTuple

from mlflow.entities.model_registry import RegisteredModel
from pydantic import BaseModel, ConfigDict

from toolwise.errors import BackendError
from toolwise.tracking import Connection

EXPERIMENT = "toolwise decisions"
LOG_TAG = "toolwise.decisions"
"""Tag of the registered model with the id of the run that is its log."""

_APPLIED_TAG = "toolwise.applied"
_LONGEST_REASON = 2500
"""MLflow keeps 6000 characters of a parameter, and JSON writes some as two."""

Action = Literal["promote", "reject", "rollback"]


class Entry(BaseModel):
    """One entry.

    Args:
        at: when, UTC.
        action: what was decided.
        version: about which version of the registered model.
        against: the champion it was judged against, or that leaves.
        why: the reasons of a rejection or rollback; what was compared, of a promotion.
        champion: the version with that alias from here on; None where nothing moves.
        previous: likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: datetime
    action: Action
    version: str
    against: str | None = None
    why: str
    champion: str | None = None
    previous: str | None = None


def entry(
    action: Action,
    version: str,
    against: str | None,
    why: str,
    *,
    champion: str | None = None,
    previous: str | None = None,
) -> Entry:
    """An entry of this moment."""
    return Entry(
        at=datetime.now(UTC).replace(microsecond=0),
        action=action,
        version=version,
        against=against,
        why=why[:_LONGEST_REASON],
        champion=champion,
        previous=previous,
    )


class Move(NamedTuple):
    """An entry that moves the champion, and its number in the log."""

    number: int
    entry: Entry


class Written(NamedTuple):
    """What a log holds.

    Args:
        entries: oldest first; entry n is at n - 1.
        applied: number of the last entry whose move the aliases show; 0 where there is none.
    """

    entries: list[Entry]
    applied: int

    @property
    def last_move(self) -> Move | None:
        """The last move of the champion."""
        moves = [Move(n, e) for n, e in enumerate(self.entries, 1) if e.champion is not None]
        return moves[-1] if moves else None

    @property
    def unfinished(self) -> Move | None:
        """The last move, where the aliases do not show it yet."""
        move = self.last_move
        return move if move and move.number > self.applied else None


class DecisionLog:
    """The log of one registered model.

    Args:
        connection: MLflow.
        run_id: the run that is the log.
    """

    def __init__(self, connection: Connection, run_id: str) -> None:
        self.run_id = run_id
        self._connection = connection

    @classmethod
    def create(cls, connection: Connection, model: str) -> DecisionLog:
        """An empty log for the registered model `model`."""
        experiment = _experiment(connection)
        run = connection.request(lambda client: client.create_run(experiment, run_name=model))
        run_id = str(run.info.run_id)
        connection.request(lambda client: client.set_terminated(run_id))
        return cls(connection, run_id)

    @classmethod
    def of(cls, connection: Connection, model: RegisteredModel) -> DecisionLog | None:
        """The log of `model`; None where it has none yet."""
        run_id = model.tags.get(LOG_TAG)
        return None if run_id is None else cls(connection, run_id)

    def read(self) -> Written:
        """All of it.

        Raises:
            BackendError: the run is gone, or is no log.
        """
        data = self._connection.request(lambda client: client.get_run(self.run_id)).data
        try:
            numbers = range(1, len(data.params) + 1)
            entries = [Entry.model_validate_json(data.params[_key(n)]) for n in numbers]
            return Written(entries, int(data.tags.get(_APPLIED_TAG, 0)))
        except (KeyError, ValueError) as error:
            raise BackendError(
                f"{self._connection.name}: run {self.run_id} is no decision log: {error}"
            ) from error

    def append(self, number: int, new: Entry) -> bool:
        """Write entry `number`; False where somebody else has written it first."""
        text = new.model_dump_json(exclude_none=True)
        try:
            self._connection.request(
                lambda client: client.log_param(self.run_id, _key(number), text)
            )
        except BackendError:
            run = self._connection.request(lambda client: client.get_run(self.run_id))
            found = run.data.params.get(_key(number))
            if found is None:
                raise
            return found == text
        return True

    def mark_applied(self, number: int) -> None:
        """Note that the aliases show the move of entry `number`."""
        self._connection.request(
            lambda client: client.set_tag(self.run_id, _APPLIED_TAG, str(number))
        )


def _key(number: int) -> str:
    return f"decision {number:06}"


def _experiment(connection: Connection) -> str:
    """Id of the experiment that holds the logs of all registered models."""
    found = connection.request(lambda client: client.get_experiment_by_name(EXPERIMENT))
    if found is not None:
        return str(found.experiment_id)
    try:
        return connection.request(lambda client: client.create_experiment(EXPERIMENT))
    except BackendError:
        # Another process may have made it since.
        found = connection.request(lambda client: client.get_experiment_by_name(EXPERIMENT))
        if found is None:
            raise
        return str(found.experiment_id)
