"""Who is answered now, who waits, who is turned away: rates, concurrency, memory, a fair queue."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from toolwise.serving.keys import ApiKey
from toolwise.serving.openai_api import RequestError
from toolwise.serving.telemetry import IN_PROGRESS, REFUSED, WAITING

_LONGEST_RETRY = 60


class Admission:
    """The places of an endpoint, shared fairly between callers.

    A free place goes to the caller with the fewest, among those to the one who has gone longest
    without. Where the queue is full, the newest of the
    caller who has most gives way to a caller who has less: a flood only ever crowds out itself.

    Args:
        places: requests answered at a time.
        queue: requests that may wait for a place.
    """

    def __init__(self, places: int, queue: int) -> None:
        self._places = places
        self._queue = queue
        self._present: Counter[str] = Counter()  # those who still send their body included
        self._running: Counter[str] = Counter()
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._served: dict[str, int] = {}  # when a caller last got a place
        self._places_given = 0
        self._rates: dict[str, _Rate] = {}
        self._seconds = 1.0  # what an answer takes, a moving average

    @contextmanager
    def admit(self, caller: ApiKey) -> Iterator[None]:
        """Count a request from its beginning until the block ends.

        One that would get no place if it came now is turned away.

        Raises:
            RequestError: 429, with the seconds after which to come again.
        """
        name = caller.name
        if caller.concurrent is not None and self._present[name] >= caller.concurrent:
            message = f"this key may have {caller.concurrent} requests at a time"
            raise refused(message, "concurrency_limit_exceeded", self._seconds)
        self._charge(caller, 1, 1)
        if self._is_full:
            self._crowded_out(name)
        self._present[name] += 1
        try:
            yield
        finally:
            self._present[name] -= 1
            self._present += Counter()  # drops those who have none left

    def charge(self, caller: ApiKey, further: int) -> None:
        """Count the further requests that an admitted one carries against the caller's rate.

        Raises:
            RequestError: 429, with the seconds after which to come again; 400 where they are more
                than the caller may ever send at once.
        """
        self._charge(caller, further, further + 1)

    def _charge(self, caller: ApiKey, requests: int, whole: int) -> None:
        """Count requests; who comes again needs room for the `whole`."""
        if caller.requests_per_minute is None:
            return
        if whole > caller.requests_per_minute:
            raise RequestError(
                f"this key may send {caller.requests_per_minute} requests a minute, and these are "
                f"{whole} at once; send fewer"
            )
        rate = self._rates.get(caller.name)
        if rate is None or rate.per_minute != caller.requests_per_minute:
            rate = self._rates[caller.name] = _Rate(caller.requests_per_minute)
        wait = rate.take(requests, whole)
        if wait:
            message = f"this key may send {caller.requests_per_minute} requests a minute"
            raise refused(message, "rate_limit_exceeded", wait)

    @asynccontextmanager
    async def place(self, caller: ApiKey) -> AsyncIterator[None]:
        """A place for one request that was admitted, waited for in the queue.

        Raises:
            RequestError: 429, with the seconds after which to come again.
        """
        if self._free and not self._lines:
            self._give(caller.name)
        else:
            await self._wait(caller.name)
        IN_PROGRESS.set(self._running.total())
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
            self._running[caller.name] -= 1
            self._running += Counter()  # drops those who have none left
            self._call_next()
            IN_PROGRESS.set(self._running.total())

    @property
    def _free(self) -> bool:
        return self._running.total() < self._places

    @property
    def _is_full(self) -> bool:
        return self._waiting >= self._queue and not (self._free and not self._lines)

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def _load(self, name: str) -> int:
        return self._running[name] + len(self._lines.get(name, ()))

    async def _wait(self, name: str) -> None:
        if self._is_full:
            self._make_room(name)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(name, deque()).append(turn)
        WAITING.set(self._waiting)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._running[name] -= 1  # called and cancelled at once
                self._call_next()
            elif turn in self._lines.get(name, ()):
                self._leave(name, turn)
            raise

    def _crowded_out(self, name: str) -> str:
        """Who has to give way to this caller; raises `RequestError` where nobody has."""
        most = max(self._lines, key=self._load, default=name)
        if self._load(most) <= self._load(name) + 1:
            raise self._no_room()
        return most

    def _make_room(self, name: str) -> None:
        most = self._crowded_out(name)
        newest = self._lines[most][-1]
        if not newest.done():  # else it has just been cancelled, and makes room all the same
            newest.set_exception(self._no_room())
        self._leave(most, newest)

    def _no_room(self) -> RequestError:
        seconds = self._seconds * (self._waiting + 1) / self._places
        return refused("too many requests are waiting", "queue_full", seconds)

    def _call_next(self) -> None:
        while self._free and self._lines:
            name = min(self._lines, key=lambda one: (self._running[one], self._served.get(one, 0)))
            turn = self._lines[name][0]
            self._leave(name, turn)
            if not turn.done():
                self._give(name)
                turn.set_result(None)

    def _give(self, name: str) -> None:
        self._running[name] += 1
        self._places_given += 1
        self._served[name] = self._places_given

    def _leave(self, name: str, turn: asyncio.Future[None]) -> None:
        self._lines[name].remove(turn)
        if not self._lines[name]:
            del self._lines[name]
        WAITING.set(self._waiting)


class _Rate:
    """A bucket of `per_minute` tokens that fills up evenly within a minute."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._tokens = float(per_minute)
        self._at = time.monotonic()

    def take(self, tokens: int, wanted: int) -> float:
        """Take so many tokens; 0, or, with fewer, the seconds until there are `wanted`."""
        now = time.monotonic()
        filled = self._tokens + (now - self._at) * self.per_minute / 60
        self._tokens, self._at = min(float(self.per_minute), filled), now
        if self._tokens >= tokens:
            self._tokens -= tokens
            return 0.0
        return (wanted - self._tokens) * 60 / self.per_minute


class Bodies:
    """The memory that the bodies of all requests under way share.

    A caller may hold as much as is still free, so that one who floods leaves others room.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._total = 0

    @contextmanager
    def of(self, caller: ApiKey) -> Iterator[Body]:
        """The body of one request, which counts until the block ends."""
        body = Body(self, caller.name)
        try:
            yield body
        finally:
            self._total -= body.size
            self._held[caller.name] -= body.size
            if not self._held[caller.name]:
                del self._held[caller.name]

    def check(self, name: str, size: int) -> None:
        """Raise `RequestError`, 429, where the caller may not hold so many bytes more."""
        if self._held[name] + size > self._limit - self._total:
            raise refused("the requests under way fill the memory for bodies", "memory_full", 1)

    def take(self, name: str, size: int) -> None:
        """Hold so many bytes more; raises as `check` does."""
        self.check(name, size)
        self._held[name] += size
        self._total += size


class Body:
    """What one request holds of the memory for bodies."""

    def __init__(self, bodies: Bodies, name: str) -> None:
        self._bodies = bodies
        self._name = name
        self.size = 0

    def announce(self, size: int) -> None:
        """Say how long it will be; raises `RequestError`, 429, where that does not fit now."""
        self._bodies.check(self._name, size)

    def grow(self, size: int) -> None:
        """Hold a piece that has come; raises `RequestError`, 429, where it does not fit."""
        self._bodies.take(self._name, size)
        self.size += size


def refused(message: str, code: str, seconds: float) -> RequestError:
    """A 429 that is counted and says when to come again."""
    REFUSED.labels(code).inc()
    wait = min(_LONGEST_RETRY, max(1, math.ceil(seconds)))
    return RequestError(f"{message}; come again in {wait} s", None, 429, code, retry_after=wait)
