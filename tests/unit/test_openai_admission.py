"""Places are shared fairly: a caller who floods the endpoint only crowds out himself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from starlette.types import Message, Receive, Scope, Send

from toolwise.serving import admission
from toolwise.serving.admission import Admission
from toolwise.serving.guard import Guard
from toolwise.serving.keys import ApiKey, KeyFile
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
        self.start(name, caller)
        await settled()

    def start(self, name: str, caller: ApiKey) -> None:
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._request(name, caller))

    async def go(self, name: str) -> None:
        self.leave[name].set()
        await self.tasks[name]
        await settled()

    async def _request(self, name: str, caller: ApiKey) -> None:
        with self.admission.admit(caller):
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


async def test_room_is_made_by_who_is_cancelled_at_that_moment() -> None:
    crowd = Crowd(places=1, queue=3)
    for number in range(4):
        await crowd.come(f"flood {number}", FLOOD)
    crowd.start("other", OTHER)
    crowd.tasks["flood 3"].cancel()  # whose task hears of it only after the other has come
    await settled()
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
        with places.admit(caller):
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


def test_a_request_that_carries_several_is_let_in_when_it_was_told_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now)
    places = Admission(8, 8)
    caller = ApiKey(name="slow", key=KEY, requests_per_minute=6)

    def ask(instances: int) -> None:
        with places.admit(caller):
            places.charge(caller, instances - 1)

    ask(6)
    now += 10
    with pytest.raises(RequestError) as refusal:
        ask(6)
    assert refusal.value.retry_after is not None
    now += refusal.value.retry_after
    ask(6)


async def times(count: int, ask: Callable[[], Awaitable[None]]) -> None:
    for _ in range(count):
        await ask()


class Endpoint:
    """A guard before an application that answers when it is told to."""

    def __init__(
        self,
        folder: Path,
        *,
        places: int,
        queue: int,
        seconds: float = 60,
        bodies_bytes: int = 1000,
    ) -> None:
        keys = folder / "keys.yaml"
        keys.write_text(
            "- {name: flood, key: flood-0123456789abcdef}\n"
            "- {name: other, key: other-0123456789abcdef}\n"
            "- {name: once, key: once-0123456789abcdef, requests_per_minute: 1}\n"
            "- {name: single, key: single-0123456789abcdef, concurrent: 1}\n"
        )
        self.answer = asyncio.Event()
        admission = Admission(places, queue)
        self.guard = Guard(self._app, self._app, admission, KeyFile(keys), seconds, bodies_bytes)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def send(self, key: str, *pieces: int, size: int | None = None) -> asyncio.Task[Answer]:
        """A request whose body comes in pieces of so many bytes.

        `size` is its length as announced, that of the pieces unless told; what is not sent never
        comes.
        """
        return asyncio.create_task(
            self._request(key, pieces, sum(pieces) if size is None else size)
        )

    async def _request(self, key: str, pieces: tuple[int, ...], size: int) -> Answer:
        authorization = f"Bearer {key}-0123456789abcdef".encode()
        headers = [(b"authorization", authorization), (b"content-length", str(size).encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
        answer = Answer()
        left = list(pieces)
        missing = size - sum(pieces)

        async def receive() -> Message:
            answer.reads += 1
            if not left:
                await asyncio.Future()
            piece = left.pop(0)
            more = bool(left) or missing > 0
            return {"type": "http.request", "body": bytes(piece), "more_body": more}

        async def send(message: Message) -> None:
            answer.messages.append(message)

        await self.guard({**scope, "headers": headers}, receive, send)
        return answer


class Answer:
    """What came back, and how often the body was read on."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.reads = 0

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.messages[1]["body"])["error"]

    @property
    def retry_after(self) -> int:
        return int(dict(self.messages[0]["headers"])[b"retry-after"])


async def test_whoever_is_turned_away_is_so_before_the_body_is_read(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, places=1, queue=0)
    first = endpoint.send("once", 10)
    await settled()
    for key, code in (("once", "rate_limit_exceeded"), ("other", "queue_full")):
        refused = await endpoint.send(key, 10)
        assert (refused.status, refused.error["code"], refused.reads) == (429, code, 0)
    endpoint.answer.set()
    assert (await first).status == 200


async def test_who_is_still_sending_counts_among_a_keys_requests(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, places=8, queue=8)
    endpoint.answer.set()
    sending = endpoint.send("single", 5, size=10)
    await settled()
    refused = await endpoint.send("single", 10)
    assert (refused.error["code"], refused.reads) == ("concurrency_limit_exceeded", 0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert (await endpoint.send("single", 10)).status == 200


async def test_whoever_waits_in_vain_is_counted_among_the_refused(tmp_path: Path) -> None:
    labels = {"reason": "queue_timeout"}
    before = REGISTRY.get_sample_value("toolwise_refused_total", labels) or 0
    endpoint = Endpoint(tmp_path, places=0, queue=1, seconds=0.01)
    refused = await endpoint.send("other", 10)
    assert (refused.error["code"], refused.retry_after) == ("queue_timeout", 1)
    assert REGISTRY.get_sample_value("toolwise_refused_total", labels) == before + 1


async def test_bodies_share_a_bounded_memory_and_a_flood_leaves_others_room(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, places=1, queue=8, bodies_bytes=100)
    answered = endpoint.send("flood", 20, 20)
    await settled()
    refused = await endpoint.send("flood", 40)
    assert (refused.status, refused.error["code"]) == (429, "memory_full")
    assert (refused.error["type"], refused.retry_after, refused.reads) == ("rate_limit_error", 1, 0)
    waiting = endpoint.send("other", 30)
    await settled()
    assert (await endpoint.send("other", 30)).error["code"] == "memory_full"
    endpoint.answer.set()
    assert {(await one).status for one in (answered, waiting)} == {200}
    assert (await endpoint.send("flood", 40)).status == 200


async def test_what_is_announced_and_not_sent_takes_no_memory(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, places=8, queue=8, bodies_bytes=100)
    endpoint.answer.set()
    idle = [endpoint.send("flood", 10, size=40) for _ in range(4)]
    await settled()
    assert (await endpoint.send("other", 50)).status == 200
    for one in idle:
        one.cancel()
    await asyncio.gather(*idle, return_exceptions=True)
    assert (await endpoint.send("flood", 50)).status == 200
