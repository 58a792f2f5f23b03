"""The thread that empties a spool, so that no step waits for MLflow."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from itertools import takewhile

from mlflow.exceptions import MlflowException

from toolwise import retry
from toolwise.errors import BackendError
from toolwise.tracking.connection import Connection, may_pass
from toolwise.tracking.delivery import Delivery, belong_together, merged
from toolwise.tracking.entries import EndPipeline, EndRun, Entry
from toolwise.tracking.spool import Spool, Unsent, left_behind

FLUSH_SECONDS = 5.0
"""How long a logged metric may wait before the UI shows it."""

OPENING_SECONDS = 10.0
"""How long a step that begins waits for MLflow before it goes on without."""

CLOSING_SECONDS = 180.0
"""How long a step that ends waits for MLflow before it leaves the rest to the next run."""

_CREDENTIALS = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}

_log = logging.getLogger(__name__)


class Sender:
    """Sends one spool to MLflow in the background, and before it what dead processes have left.

    Args:
        spool: this step's; its first entry is written.
        connection: MLflow.
    """

    def __init__(self, spool: Spool, connection: Connection) -> None:
        self._spool = spool
        self._connection = connection
        self._changed = threading.Condition()
        self._asked = 0  # times somebody wanted everything sent at once
        self._sent_for = 0  # of those, how many have been granted
        self._failures = 0  # in a row, with nothing delivered between them
        self._last_error: BaseException | None = None
        self._closing = False
        self._keep = True
        self._delivery: Delivery | None = None
        self._earlier_ended = False
        self._random = random.Random()  # a training's own stream of numbers is not touched
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def open(self) -> Delivery | None:
        """Wait a little for the run to be there; None where MLflow is away or too slow for that.

        Raises:
            BackendError: MLflow answers, and refuses.
        """
        self.drain(OPENING_SECONDS, failures=2)
        last = self._last_error
        if self._delivery is None and last is not None and not may_pass(last):
            self._stop(keep=False)
            raise BackendError(f"{self._connection.name}: {last}") from last
        if self._delivery is None:
            _log.warning(
                "%s does not answer (%s); what it is to be told is kept in %s until it does",
                self._connection.name,
                last or "no reply yet",
                self._spool.folder,
            )
        return self._delivery

    def opened(self) -> Delivery:
        """Wait until the run is there; raises `BackendError` as `require` does."""
        return self._delivery or self.require()

    def require(self) -> Delivery:
        """Wait until everything is sent.

        Raises:
            BackendError: MLflow failed too often in a row; names the last error.
        """
        if not self.drain(float("inf"), failures=retry.ATTEMPTS) or self._delivery is None:
            last = self._last_error
            if last is None:
                raise BackendError(f"{self._connection.name} had not replied when the step ended")
            raise BackendError(
                f"{self._connection.name} failed {retry.ATTEMPTS} times; last error: "
                f"{type(last).__name__}: {last}"
            ) from last
        return self._delivery

    def drain(self, seconds: float, failures: int) -> bool:
        """Send all there is at once and wait for it.

        Returns:
            Whether it is sent; False after `seconds`, or after so many failures in a row.
        """
        with self._changed:
            self._asked += 1
            mine, self._failures = self._asked, 0
            self._changed.notify_all()
            until = None if seconds == float("inf") else seconds
            self._changed.wait_for(
                lambda: self._sent_for >= mine or self._failures >= failures or self._closing, until
            )
            return self._sent_for >= mine

    def close(self) -> bool:
        """Send the rest and stop; what MLflow does not take in time stays for the next run.

        Returns:
            Whether everything is sent.
        """
        done = self.drain(CLOSING_SECONDS, failures=retry.ATTEMPTS)
        self._stop(keep=not done)
        if not done:
            _log.warning(
                "%s does not answer (%s); what it has not been told is kept in %s, and the next "
                "run sends it",
                self._connection.name,
                self._last_error or "no reply yet",
                self._spool.folder,
            )
        return done

    def _stop(self, *, keep: bool) -> None:
        with self._changed:
            self._closing, self._keep = True, keep
            self._changed.notify_all()
        if not keep:
            self._thread.join()

    def _run(self) -> None:
        """Send, wait, send; the spool goes when it is empty and closed, or else is let go."""
        while True:
            with self._changed:
                asked, closing = self._asked, self._closing
            if closing:
                break
            try:
                delivery = self._open_own()
                self._send_left_behind()  # first, for it is older
                self._end_earlier_attempts(delivery)
                self._send(self._spool, delivery)
            except Exception as error:  # all that MLflow and its stores may raise
                self._failed(error)
            else:
                self._succeeded(asked)
        if self._keep:
            self._spool.release()
        else:
            self._spool.remove()

    def _open_own(self) -> Delivery:
        if self._delivery is None:
            delivery = Delivery(self._connection, self._spool, live=True)
            delivery.open(self._spool.entries()[0])
            self._delivery = delivery
        return self._delivery

    def _end_earlier_attempts(self, delivery: Delivery) -> None:
        if not self._earlier_ended:
            delivery.end_earlier_attempts(self._spool.entries()[0])
            self._earlier_ended = True

    def _send_left_behind(self) -> None:
        for spool in left_behind(self._connection.uri):
            try:
                self._finish(spool)
            except Exception as error:
                if _may_pass_here(error):
                    spool.release()
                    raise
                kept = spool.set_aside()
                _log.warning("%s refused what is in %s: %s", self._connection.name, kept, error)
            else:
                spool.remove()

    def _finish(self, spool: Spool) -> None:
        entries = spool.entries()
        if not entries:
            return
        delivery = Delivery(self._connection, spool, live=False)
        delivery.open(entries[0])
        self._send(spool, delivery)
        if not isinstance(entries[-1], EndRun | EndPipeline):
            delivery.cut_off()

    def _send(self, spool: Spool, delivery: Delivery) -> None:
        """Deliver what is unsent, in order; what MLflow refuses for good is set aside."""
        unsent = spool.unsent()
        while unsent:
            together = _head(unsent)
            try:
                delivery.deliver(merged([one.entry for one in together]))
            except Exception as error:
                if _may_pass_here(error):
                    raise
                _set_aside(spool, [one.entry for one in together], error)
            spool.mark_sent(together[-1])
            self._failures = 0
            unsent = unsent[len(together) :]

    def _succeeded(self, asked: int) -> None:
        with self._changed:
            self._sent_for, self._failures = asked, 0
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._asked > asked or self._closing, FLUSH_SECONDS)

    def _failed(self, error: BaseException) -> None:
        with self._changed:
            self._failures += 1
            self._last_error = error
            longest = min(retry.LONGEST_WAIT, retry.FIRST_WAIT * 2**self._failures)
            self._changed.notify_all()
            asked = self._asked
            self._changed.wait_for(
                lambda: self._asked > asked or self._closing, self._random.uniform(0, longest)
            )


def _head(unsent: Sequence[Unsent]) -> list[Unsent]:
    """The first entry, with those after it that go in the same request."""
    first = unsent[0]
    return [first, *takewhile(lambda one: belong_together(first.entry, one.entry), unsent[1:])]


def _may_pass_here(error: Exception) -> bool:
    """Also credentials may be put right while the step goes on."""
    return may_pass(error) or (
        isinstance(error, MlflowException) and error.error_code in _CREDENTIALS
    )


def _set_aside(spool: Spool, entries: Sequence[Entry], error: Exception) -> None:
    """Keep what MLflow will never take, so that it does not hold up the rest."""
    refused = spool.folder.with_name(f"refused-{spool.name}.jsonl")
    with refused.open("a", encoding="utf-8") as file:
        for entry in entries:
            file.write(entry.model_dump_json() + "\n")
    _log.warning(
        "MLflow refused %d entries, which are kept in %s: %s", len(entries), refused, error
    )
