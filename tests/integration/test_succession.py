"""Two pipelines, a kill or a hand in the registry: one champion, and a log that says why."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import promoting_process
import pytest
from mlflow.tracking import MlflowClient
from promoting_process import PROMOTE

from toolwise.errors import BackendError, InputError
from toolwise.promotion.decision_log import DecisionLog, entry
from toolwise.promotion.registry import Registry
from toolwise.promotion.succession import Succession
from toolwise.tracking import Connection


@pytest.fixture(scope="module")
def uri(mlflow_uri: str) -> str:
    return mlflow_uri


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


@pytest.fixture
def registry(uri: str, request: pytest.FixtureRequest) -> Registry:
    return Registry(request.node.name, Connection(uri))


def new_run(client: MlflowClient) -> str:
    return client.create_run("0").info.run_id


def registered(registry: Registry, client: MlflowClient) -> str:
    return registry.register(new_run(client), "s3://models/m")


def aliases(client: MlflowClient, registry: Registry) -> dict[str, str]:
    found = client.get_registered_model(registry.name).aliases
    return {alias: str(version) for alias, version in found.items()}


class Pipeline:
    """A process that promotes."""

    def __init__(self, uri: str, name: str, source: str) -> None:
        command = [sys.executable, promoting_process.__file__, uri, name, source]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def test_of_two_pipelines_promoting_at_once_one_wins_and_the_other_is_told(
    uri: str, client: MlflowClient, registry: Registry
):
    champion: str | None = None
    with ExitStack() as running:
        pipelines = [
            running.enter_context(Pipeline(uri, registry.name, f"s3://models/{name}"))
            for name in ("a", "b")
        ]
        # In the first round the registered model and its log are not there yet.
        for _ in range(2):
            for pipeline in pipelines:
                pipeline.tell(new_run(client))
            assert [pipeline.answer() for pipeline in pipelines] == ["judged", "judged"]
            for pipeline in pipelines:
                pipeline.tell("record")
            answers: list[dict[str, Any]] = [json.loads(p.answer()) for p in pipelines]
            [winner] = [a["version"] for a in answers if a["decision"] == "promote"]
            [loser] = [a for a in answers if a["decision"] == "reject"]
            against = "no champion" if champion is None else f"version {champion}"
            [why] = loser["reasons"]
            assert why.startswith(f"champion: version {winner} was promoted at 20")
            assert f"after this began against {against}" in why
            tags = client.get_model_version(registry.name, loser["version"]).tags
            assert (tags["toolwise.decision"], tags["toolwise.reasons"]) == ("reject", why)
            previous = {} if champion is None else {"previous": champion}
            assert aliases(client, registry) == {"champion": winner, **previous}
            champion = winner
    log = registry.decisions()
    assert sorted(e.action for e in log) == ["promote"] * 2 + ["reject"] * 2
    assert {e.version for e in log} == {str(number) for number in range(1, 5)}


def test_every_decision_and_rollback_is_in_the_log_in_order(
    registry: Registry, client: MlflowClient
):
    first, second, third = (registered(registry, client) for _ in range(3))
    registry.record(first, PROMOTE)
    registry.record(second, PROMOTE)
    registry.record(third, PROMOTE.rejected("evidence", "too few items"))
    assert registry.rollback("latency doubled") == first
    told = [(e.action, e.version, e.against, e.champion, e.previous) for e in registry.decisions()]
    assert told == [
        ("promote", first, None, first, None),
        ("promote", second, first, second, first),
        ("reject", third, second, None, None),
        ("rollback", first, second, first, None),
    ]
    assert [e.why for e in registry.decisions()][2:] == [
        "evidence: too few items",
        "latency doubled",
    ]


def test_an_entry_is_never_written_twice(registry: Registry, client: MlflowClient, uri: str):
    version = registered(registry, client)
    registry.record(version, PROMOTE)
    log = DecisionLog.of(Connection(uri), client.get_registered_model(registry.name))
    assert log is not None
    assert not log.append(1, entry("reject", version, None, "the past, rewritten"))
    assert log.append(2, entry("reject", version, None, "x" * 10_000))
    assert [e.action for e in log.read().entries] == ["promote", "reject"]


def test_a_promotion_that_was_killed_before_the_aliases_moved_is_finished_by_the_next(
    registry: Registry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    first, second = (registered(registry, client) for _ in range(2))
    registry.record(first, PROMOTE)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Succession, "_set_aliases", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.record(second, PROMOTE)
    assert aliases(client, registry) == {"champion": first}
    assert registry.standing().champion == second
    assert aliases(client, registry) == {"champion": second, "previous": first}


def test_to_look_at_an_unfinished_promotion_says_who_will_be_champion_and_changes_nothing(
    registry: Registry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    first, second = (registered(registry, client) for _ in range(2))
    registry.record(first, PROMOTE)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Succession, "_set_aliases", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.record(second, PROMOTE)
    seen = registry.seen()
    assert (seen.champion, seen.previous) == (second, first)
    assert aliases(client, registry) == {"champion": first}
    # The step that was cut off is run again, and finishes its own promotion.
    registry.record(second, PROMOTE, seen)
    assert aliases(client, registry) == {"champion": second, "previous": first}


@pytest.mark.parametrize("late", ["previous", "champion"])
def test_an_alias_request_that_arrives_after_the_next_promotion_does_not_stay(
    registry: Registry,
    client: MlflowClient,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    late: str,
):
    """A's request for an alias is on its way while B promotes from start to end."""
    other = Registry(registry.name, Connection(uri))
    zero, first, second = (registered(registry, client) for _ in range(3))
    registry.record(zero, PROMOTE)
    request = Connection.request
    waiting = [late]

    def overtaken(connection: Connection, call: Any) -> Any:
        if waiting and "_set_aliases" in call.__qualname__ and call.__defaults__[0] == waiting[0]:
            waiting.clear()
            other.record(second, PROMOTE, other.standing())
        return request(connection, call)

    monkeypatch.setattr(Connection, "request", overtaken)
    assert registry.record(first, PROMOTE).decision == "promote"
    assert not waiting
    assert [entry.champion for entry in registry.decisions()] == [zero, first, second]
    assert aliases(client, registry) == {"champion": second, "previous": first}


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_promotion_while_another_pipeline_looks_is_never_overwritten_unseen(
    client: MlflowClient,
    registry: Registry,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
):
    """B promotes from start to end before one of the requests by which A sees who is champion."""
    connection = Connection(uri)
    looking = Registry(registry.name, connection)
    first, second, third = (registered(registry, client) for _ in range(3))
    registry.record(first, PROMOTE)
    request = Connection.request
    requests = 0

    def meanwhile(used: Connection, call: Any) -> Any:
        nonlocal requests
        if used is connection:
            requests += 1
            if requests == place:
                registry.record(second, PROMOTE)
        return request(used, call)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "request", meanwhile)
        seen = looking.seen()
    assert requests >= place, "the promotion took place"
    decision = looking.record(third, PROMOTE, seen)
    if place < 3:
        assert (seen.champion, seen.previous) == (second, first)
        assert decision.decision == "promote"
        assert aliases(client, registry) == {"champion": third, "previous": second}
    else:
        assert decision.decision == "reject"
        assert f"version {second} was promoted" in decision.reasons[0]
        assert aliases(client, registry) == {"champion": second, "previous": first}


def test_an_alias_that_a_person_moved_stays_where_it_is(registry: Registry, client: MlflowClient):
    first, second = (registered(registry, client) for _ in range(2))
    registry.record(first, PROMOTE)
    client.set_registered_model_alias(registry.name, "champion", second)
    assert registry.standing().champion == second


def test_a_registered_model_made_by_hand_gets_its_log_with_the_first_decision(
    registry: Registry, client: MlflowClient
):
    client.create_registered_model(registry.name)
    assert registry.decisions() == []
    registry.record(registered(registry, client), PROMOTE)
    assert [e.action for e in registry.decisions()] == ["promote"]


def test_a_rollback_that_another_promotion_came_before_is_refused(
    registry: Registry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    first, second, third = (registered(registry, client) for _ in range(3))
    registry.record(first, PROMOTE)
    registry.record(second, PROMOTE)
    seen = registry.standing()
    registry.record(third, PROMOTE)
    monkeypatch.setattr(Registry, "standing", lambda _: seen)
    with pytest.raises(
        InputError, match=f"version {third} was promoted .* against version {second}"
    ):
        registry.rollback("latency")
    assert aliases(client, registry) == {"champion": third, "previous": second}


def test_a_log_that_somebody_wrote_to_is_named(registry: Registry, client: MlflowClient):
    registry.record(registered(registry, client), PROMOTE)
    run_id = client.get_registered_model(registry.name).tags["toolwise.decisions"]
    client.log_param(run_id, "note", "by hand")
    with pytest.raises(BackendError, match=f"run {run_id} is no decision log"):
        registry.standing()


def test_a_password_in_the_address_is_in_no_error(
    registry: Registry, client: MlflowClient, uri: str, monkeypatch: pytest.MonkeyPatch
):
    registry.record(registered(registry, client), PROMOTE)
    run_id = client.get_registered_model(registry.name).tags["toolwise.decisions"]
    client.log_param(run_id, "note", "by hand")
    connection = Connection(uri)
    connection.client  # noqa: B018  # made, and then called by another address
    monkeypatch.setattr(connection, "uri", "postgresql://mlflow:secret@db.example.org/mlflow")
    with pytest.raises(BackendError, match=r"mlflow:\*\*\*@db.example.org/mlflow: run") as caught:
        Registry(registry.name, connection).standing()
    assert "secret" not in str(caught.value)
