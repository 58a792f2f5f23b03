"""Promotion in a real MLflow registry."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from toolwise import tracking
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import METRIC_VERSION, RolloutScore, summarise, write_scores
from toolwise.promotion.gate import Decision, GatePolicy, decide
from toolwise.promotion.registry import Registry


@pytest.fixture(scope="module")
def uri(mlflow_uri: str) -> str:
    return mlflow_uri


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


@pytest.fixture
def registry(uri: str, request: pytest.FixtureRequest) -> Registry:
    return Registry(request.node.name, tracking.Connection(uri))


def score(task_id: str, mode: Any, correct: bool = True, calls: int = 0) -> RolloutScore:
    return RolloutScore(task_id, "math", mode, 0, correct, calls, 0, 9, 0.5, 0.0, "7")


def frugal(items: int = 100) -> list[RolloutScore]:
    """Half of the items need a call and get one; the others get none."""
    return [
        row
        for i in range(items)
        for row in (
            score(f"{i}", "greedy", calls=i % 2),
            score(f"{i}", "tools_off", correct=i % 2 == 0),
        )
    ]


def evaluated(uri: str, folder: Path, scores: list[RolloutScore]) -> str:
    """Id of a run that logged an evaluation with these scores."""
    folder.mkdir()
    write_scores(folder / "scores.jsonl", scores)
    metrics = {mode: summarise(scores, mode) for mode in ("greedy", "sampled")}
    facts = {"benchmark": "b1", "metric_version": METRIC_VERSION, "items": len(scores) // 2}
    (folder / "metrics.json").write_text(json.dumps({**metrics, **facts}))
    (folder / "samples.jsonl").write_text("")
    with tracking.step(tracking.PipelineRun("registry", "run"), "evaluate hdpo", uri=uri) as run:
        run.evaluation("hdpo", folder, folder / "scores.jsonl", folder)
    return run.run_id


PROMOTE = decide(GatePolicy(), frugal(200), baseline=frugal(200))
REJECT = decide(GatePolicy(), frugal(200), baseline=None)


def aliases(client: MlflowClient, registry: Registry) -> dict[str, str]:
    found = client.get_registered_model(registry.name).aliases
    return {alias: str(version) for alias, version in found.items()}


def promoted(registry: Registry, uri: str, folder: Path) -> str:
    version = registry.register(evaluated(uri, folder, frugal()), f"s3://models/{folder.name}")
    registry.record(version, PROMOTE)
    return version


def test_a_promoted_version_is_the_champion_and_its_scores_come_back(
    client: MlflowClient, registry: Registry, uri: str, tmp_path: Path
):
    assert PROMOTE.decision == "promote"
    assert registry.champion() is None
    run_id = evaluated(uri, tmp_path / "hdpo", frugal())
    version = registry.register(run_id, "s3://models/hdpo")
    assert registry.champion() is None
    registry.record(version, PROMOTE)

    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.source, champion.run_id) == (
        version,
        "s3://models/hdpo",
        run_id,
    )
    assert champion.evaluation.scores == frugal()
    assert champion.evaluation.benchmark == "b1"
    tags = client.get_model_version(registry.name, version).tags
    assert tags["toolwise.decision"] == "promote"
    assert tags["greedy/overall/redundant_call_rate"] == "0.0000"
    assert tags["greedy/overall/necessary_call_rate"] == "1.0000"


def test_the_next_champion_leaves_the_old_one_as_previous_and_can_be_rolled_back(
    client: MlflowClient, registry: Registry, uri: str, tmp_path: Path
):
    first = promoted(registry, uri, tmp_path / "first")
    assert aliases(client, registry) == {"champion": first}
    second = promoted(registry, uri, tmp_path / "second")
    assert aliases(client, registry) == {"champion": second, "previous": first}

    assert registry.rollback("latency doubled in production") == first
    assert aliases(client, registry) == {"champion": first}
    tags = client.get_model_version(registry.name, second).tags
    assert tags["toolwise.decision"] == "rolled back"
    assert tags["toolwise.reasons"] == "latency doubled in production"
    with pytest.raises(InputError, match="nothing to roll back to"):
        registry.rollback("again")


def test_a_step_run_again_registers_and_crowns_nothing_twice(
    client: MlflowClient, registry: Registry, uri: str, tmp_path: Path
):
    first = promoted(registry, uri, tmp_path / "first")
    run_id = evaluated(uri, tmp_path / "second", frugal())
    for _ in range(2):
        second = registry.register(run_id, "s3://models/second")
        registry.record(second, PROMOTE)
    assert len(client.search_model_versions(f"name='{registry.name}'")) == 2
    assert aliases(client, registry) == {"champion": second, "previous": first}


def test_a_rejected_version_is_kept_with_the_reasons_and_serves_nothing(
    client: MlflowClient, registry: Registry, uri: str, tmp_path: Path
):
    first = promoted(registry, uri, tmp_path / "first")
    rejected = registry.register(evaluated(uri, tmp_path / "second", frugal()), "s3://models/2")
    registry.record(rejected, REJECT)
    assert aliases(client, registry) == {"champion": first}
    tags = client.get_model_version(registry.name, rejected).tags
    assert tags["toolwise.decision"] == "reject"
    assert "neither a champion nor a baseline" in tags["toolwise.reasons"]


def test_a_challenger_is_compared_with_the_scores_of_the_champion(
    registry: Registry, uri: str, tmp_path: Path
):
    promoted(registry, uri, tmp_path / "first")
    champion = registry.champion()
    assert champion is not None
    worse = [
        score(r.task_id, r.mode, False, r.tool_calls) if r.mode == "greedy" else r for r in frugal()
    ]
    decision: Decision = decide(GatePolicy(), worse, champion.evaluation.scores, baseline=worse)
    assert decision.reference == "champion"
    assert decision.criteria[-1].value == 1.0
    assert decision.decision == "reject"


def test_lost_scores_of_the_champion_are_named(client: MlflowClient, registry: Registry):
    # A run that never had files stands for one that lost them, whatever they are kept in.
    run_id = client.create_run("0").info.run_id
    registry.record(registry.register(run_id, "s3://models/first"), PROMOTE)
    with pytest.raises(BackendError, match=rf"version 1: evaluation/scores.jsonl .*{run_id}"):
        registry.champion()
