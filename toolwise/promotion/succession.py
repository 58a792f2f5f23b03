"""Who is champion: the aliases of a registered model, moved in the order of its decision log.

MLflow sets an alias without asking what it was before. So a move is written to the log first, where
only one process can write the next entry, and the aliases follow the log.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.entities.model_registry import RegisteredModel

from toolwise.errors import BackendError
from toolwise.promotion.decision_log import LOG_TAG, DecisionLog, Entry, Written
from toolwise.tracking import Connection

CHAMPION = "champion"
PREVIOUS = "previous"


@dataclass(frozen=True, slots=True)
class Standing:
    """Which versions hold the aliases at one moment.

    Args:
        champion, previous: their numbers; None where the alias is on none.
        entries: how many entries the decision log has.
    """

    champion: str | None
    previous: str | None
    entries: int


class Succession:
    """The champions of one registered model.

    Args:
        name: the registered model's.
        connection: MLflow.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self._connection = connection

    def found(self) -> None:
        """Make the registered model with its log, unless it is there."""
        if self.model() is not None:
            return
        log = DecisionLog.create(self._connection, self.name)
        tags = {LOG_TAG: log.run_id}
        try:
            self._connection.request(lambda c: c.create_registered_model(self.name, tags))
        except BackendError:
            # Another process made it, with the log that counts.
            self._connection.request(lambda client: client.delete_run(log.run_id))
            if self.model() is None:
                raise

    def model(self) -> RegisteredModel | None:
        """The registered model; None where there is none yet."""
        if self._connection.is_new:
            return None
        query = f"name='{self.name}'"
        found = self._connection.request(lambda client: client.search_registered_models(query))
        return next(iter(found), None)

    def standing(self) -> Standing:
        """Who is champion, with a move that was left unfinished finished first."""
        self.settle()
        return self.seen()

    def seen(self) -> Standing:
        """Who is champion, or will be once a move that is in the log is made; changes nothing."""
        written = self._written(self.model())
        if move := written.unfinished:
            return Standing(move.entry.champion, move.entry.previous, len(written.entries))
        # The aliases last: a move that comes in between is then one that came first for `move`.
        model = self.model()
        aliases = {alias: str(v) for alias, v in model.aliases.items()} if model else {}
        return Standing(aliases.get(CHAMPION), aliases.get(PREVIOUS), len(written.entries))

    def entries(self) -> list[Entry]:
        """Every decision and rollback, oldest first."""
        return self._written(self.model()).entries

    def note(self, new: Entry) -> None:
        """Log what moves nothing, unless the last entry says the same."""
        while True:
            entries = self.entries()
            if entries and entries[-1].model_copy(update={"at": new.at}) == new:
                return
            if self._log().append(len(entries) + 1, new):
                return

    def move(self, standing: Standing, new: Entry) -> Entry | None:
        """Log a move of the champion and make it.

        Args:
            standing: what it was decided against.
            new: the move.

        Returns:
            None; where another move has come first since, that one, and nothing is done.
        """
        while True:
            entries = self.entries()
            came_first = [e for e in entries[standing.entries :] if e.champion is not None]
            if came_first:
                return came_first[-1]
            if self._log().append(len(entries) + 1, new):
                self.settle()
                return None

    def settle(self) -> None:
        """Make the aliases show the last move in the log, whoever wrote it.

        A request can be late: by the time it is served, another process may have made a later
        move and noted that it is made. So what was set here is compared with the log afterwards,
        and set again until it is the last move.
        """
        move = self._written(self.model()).unfinished
        while move is not None:
            self._set_aliases(move.entry)
            last = self._written(self.model()).last_move
            if last == move:
                self._log().mark_applied(move.number)
                return
            move = last

    def _set_aliases(self, move: Entry) -> None:
        for alias, version in ((PREVIOUS, move.previous), (CHAMPION, move.champion)):
            self._connection.request(
                lambda client, alias=alias, version=version: (
                    client.delete_registered_model_alias(self.name, alias)
                    if version is None
                    else client.set_registered_model_alias(self.name, alias, version)
                )
            )

    def _written(self, model: RegisteredModel | None) -> Written:
        log = DecisionLog.of(self._connection, model) if model else None
        return log.read() if log else Written([], 0)

    def _log(self) -> DecisionLog:
        """The log; made here for a registered model that was made without one."""
        model = self.model()
        log = DecisionLog.of(self._connection, model) if model else None
        if log is None:
            log = DecisionLog.create(self._connection, self.name)
            self._connection.request(
                lambda client: client.set_registered_model_tag(self.name, LOG_TAG, log.run_id)
            )
        return log


def overtaken(by: Entry, standing: Standing) -> str:
    """Why what was decided against `standing` does not hold, in words."""
    against = "no champion" if standing.champion is None else f"version {standing.champion}"
    done = "put back" if by.action == "rollback" else "promoted"
    return (
        f"version {by.champion} was {done} at {by.at:%Y-%m-%d %H:%M:%S} UTC, after this began "
        f"against {against}; do it again, against version {by.champion}"
    )
