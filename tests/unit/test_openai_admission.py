"""Places are shared fairly: a caller who floods the endpoint only crowds out himself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pydantic import SecretStr

from toolwise.serving import admission
from toolwise.serving.admission import Admission
from toolwise.serving.keys import ApiKey
from toolwise.serving.openai_api import RequestError

KEY = SecretStr("0123456789abcdef")
FLOOD, OTHER = ApiKey(name="flood", key=KEY), ApiKey(name="other", key=KEY)


class Crowd:
    """Requests that keep their place until they are told to go."""

    def __init__(self, places: int, queue: int) -> None:
        self.admission = Admission(places, queue)
        self.served: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, caller: ApiKey) -> None:
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._request(name, caller))
        await settled()

    async def go(self, name: str) -> None:
        self.leave[name].set()
        await self.tasks[name]
        await settled()

    async def _request(self, name: str, caller: ApiKey) -> None:
        async with self.admission.place(caller):
            self.served.append(name)
            await self.leave[name].wait()

    async def refused(self, name: str) -> RequestError:
        with pytest.raises(RequestError) as refusal:
            await self.tasks[name]
        assert refusal.value.status == 429
        assert refusal.value.retry_after is not None
        assert refusal.value.retry_after >= 1
        return refusal.value

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_place_goes_to_whoever_waits_and_has_fewest() -> None:
    crowd = Crowd(places=2, queue=10)
    for number in range(5):
        await crowd.come(f"flood {number}", FLOOD)
    await crowd.come("other", OTHER)
    assert crowd.served == ["flood 0", "flood 1"]
    await crowd.go("flood 0")
    assert crowd.served == ["flood 0", "flood 1", "other"]
    await crowd.go("flood 1")
    assert crowd.served[3:] == ["flood 2"]
    await crowd.end()


async def test_a_full_queue_turns_the_flood_away_and_lets_another_in() -> None:
    crowd = Crowd(places=1, queue=3)
    for number in range(5):
        await crowd.come(f"flood {number}", FLOOD)
    assert (await crowd.refused("flood 4")).code == "queue_full"
    await crowd.come("other", OTHER)
    assert (await crowd.refused("flood 3")).code == "queue_full"
    await crowd.go("flood 0")
    assert crowd.served == ["flood 0", "other"]
    await crowd.end()


async def test_nobody_waits_where_there_is_no_queue() -> None:
    crowd = Crowd(places=1, queue=0)
    await crowd.come("first", FLOOD)
    await crowd.come("second", FLOOD)
    await crowd.refused("second")
    await crowd.go("first")
    await crowd.come("third", FLOOD)
    assert crowd.served == ["first", "third"]
    await crowd.end()


async def test_who_stops_waiting_leaves_the_queue() -> None:
    crowd = Crowd(places=1, queue=1)
    await crowd.come("first", FLOOD)
    await crowd.come("second", FLOOD)
    crowd.tasks["second"].cancel()
    await settled()
    await crowd.come("third", FLOOD)
    await crowd.go("first")
    assert crowd.served == ["first", "third"]
    await crowd.end()


async def test_a_place_given_to_who_has_just_left_is_given_on() -> None:
    crowd = Crowd(places=1, queue=2)
    first = crowd.admission.place(FLOOD)
    await first.__aenter__()
    await crowd.come("second", FLOOD)
    await crowd.come("third", FLOOD)
    await first.__aexit__(None, None, None)
    crowd.tasks["second"].cancel()
    await settled()
    assert crowd.served == ["third"]
    await crowd.end()


async def test_a_key_has_no_more_than_its_own_concurrency() -> None:
    crowd = Crowd(places=8, queue=8)
    caller = ApiKey(name="two", key=KEY, concurrent=2)
    for name in ("first", "second", "third"):
        await crowd.come(name, caller)
    assert (await crowd.refused("third")).code == "concurrency_limit_exceeded"
    await crowd.go("first")
    await crowd.come("fourth", caller)
    assert crowd.served == ["first", "second", "fourth"]
    await crowd.end()


async def test_a_key_is_let_in_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now)
    places = Admission(8, 8)
    caller = ApiKey(name="slow", key=KEY, requests_per_minute=3)

    async def ask() -> None:
        async with places.place(caller):
            pass

    await times(3, ask)
    with pytest.raises(RequestError) as refusal:
        await ask()
    assert (refusal.value.code, refusal.value.retry_after) == ("rate_limit_exceeded", 20)
    now += 19.9
    with pytest.raises(RequestError):
        await ask()
    now += 0.2
    await ask()
    now += 3600
    await times(3, ask)  # a quiet hour saves up no more than a minute
    with pytest.raises(RequestError):
        await ask()


async def times(count: int, ask: Callable[[], Awaitable[None]]) -> None:
    for _ in range(count):
        await ask()
