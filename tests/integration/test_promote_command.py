"""`toolwise promote`, `rollback` and `decisions`, against a real registry."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from kfp import dsl
from kfp.dsl.types import artifact_types
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from typer.testing import CliRunner

from components.promote.component import promote
from toolwise import tracking
from toolwise.cli import app
from toolwise.errors import BackendError
from toolwise.evaluation.metrics import METRIC_VERSION, RolloutScore, summarise, write_scores
from toolwise.profile import load_profile
from toolwise.promotion.lineage import read_lineage
from toolwise.promotion.registry import Registry
from toolwise.steps.functions import RUN_ID_FILE
from toolwise.storage import content_digest

COMPONENT: Callable[..., bool] = vars(promote)["python_func"]
"""What the pod of the step runs."""


@pytest.fixture(scope="module")
def uri(mlflow_uri: str) -> str:
    return mlflow_uri


@pytest.fixture(autouse=True)
def environment(
    uri: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path / "steps"))
    for name in ("model", "next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)


def evaluation(
    uri: str,
    folder: Path,
    *,
    redundant: int = 0,
    benchmark: str = "ab" * 32,
    checkpoint: str | None = "",
    of: Path | None = None,
) -> Path:
    """Of 200 items half need a call and get one; of the others the first `redundant` get one.

    The checkpoint that answered is by default the one called `model`.
    """
    folder.mkdir()
    if checkpoint == "":
        checkpoint = content_digest(folder.parent / "model")
    scores: list[RolloutScore] = []
    for i in range(200):
        needed = i % 2 == 1
        row = RolloutScore(f"{i}", "math", "greedy", 0, True, 0, 0, 9, 0.5, 0.0, "7")
        scores.append(replace(row, tool_calls=int(needed or i < 2 * redundant)))
        scores.append(replace(row, mode="tools_off", correct=not needed))
    write_scores(folder / "scores.jsonl", scores)
    summaries = {mode: summarise(scores, mode) for mode in ("greedy", "sampled")}
    facts = {
        "checkpoint": checkpoint,
        "benchmark": benchmark,
        "metric_version": METRIC_VERSION,
        "items": 200,
        "solvable": 100,
        "settings": {"samples": 0, "counterfactual_samples": 1},
    }
    (folder / "metrics.json").write_text(json.dumps({**summaries, **facts}))
    (folder / "samples.jsonl").write_text("")
    with tracking.step(tracking.PipelineRun("promoting", "run"), "evaluate hdpo", uri=uri) as run:
        run.evaluation("hdpo", folder, folder / "scores.jsonl", of or folder)
    (folder / RUN_ID_FILE).write_text(run.run_id)
    return folder


def stage_before(challenger: Path) -> Path:
    """An evaluation of another checkpoint that has answered just the same."""
    folder = challenger.with_name(f"before-{challenger.name}")
    if not folder.exists():
        shutil.copytree(challenger, folder)
        facts = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(facts | {"checkpoint": "b0" * 32}))
    return folder


def toolwise(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exception is None, result.output
    return result.output


def refused(*arguments: object) -> str:
    """What is said, on one line, where the command ends with an error."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    return " ".join((result.output + result.stderr).split())


def test_a_decision_is_explained_and_nothing_changes(uri: str, tmp_path: Path):
    frugal = evaluation(uri, tmp_path / "frugal")
    reflex = evaluation(uri, tmp_path / "reflex", redundant=30)
    told = toolwise(
        "promote", "--dry-run", "--challenger", reflex, "--baseline", stage_before(frugal)
    )
    assert "reject (greedy answers, items abababababab" in told
    assert "fail  redundant_call_rate: 0.3000 over 100 items, upper bound 0.3958 is not" in told
    assert "how often it calls a tool on items it solves without one" in told
    assert "pass  necessary_call_rate: 1.0000 over 100 items" in told
    assert MlflowClient(uri).search_registered_models("name = 'test_a_decision_is'") == []
    strict = tmp_path / "strict.yaml"
    strict.write_text("redundant_call_rate_max: 0.01")
    told = toolwise(
        *("promote", "--dry-run", "--challenger", frugal, "--baseline", stage_before(frugal)),
        *("--policy", strict),
    )
    assert "upper bound 0.0370 is not at most 0.01" in told


def test_an_explanation_leaves_not_even_an_empty_registry(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = evaluation(uri, tmp_path / "e")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    told = toolwise(
        "promote", "--dry-run", "--challenger", folder, "--baseline", stage_before(folder)
    )
    assert "promote (greedy answers" in told
    assert not (tmp_path / "new").exists()


def test_promoted_overtaken_and_put_back(uri: str, tmp_path: Path):
    first, second = (evaluation(uri, tmp_path / name) for name in ("first", "second"))
    for number, challenger in enumerate((first, second), 1):
        out = tmp_path / f"decision-{number}.json"
        told = toolwise(
            *("promote", "--model", tmp_path / "model", "--challenger", challenger),
            *("--baseline", stage_before(first), "--out", out),
        )
        assert "promote (greedy answers, items abababababab" in told
        assert json.loads(out.read_text())["decision"] == "promote"
    told = toolwise("rollback", "--reason", "latency doubled")
    assert "Version 1 of test_promoted_overtaken_and_put_back is the champion again" in told
    lines = [line.split() for line in toolwise("decisions").splitlines()[1:]]
    assert [line[2:5] for line in lines] == [
        ["promote", "1", "–"],
        ["promote", "2", "1"],
        ["rollback", "1", "2"],
    ]
    # Promoted again after the rollback: the step is done anew, against the champion of today.
    out = tmp_path / "again.json"
    toolwise(
        *("promote", "--model", tmp_path / "model", "--challenger", second),
        *("--baseline", stage_before(first), "--out", out),
    )
    assert json.loads(out.read_text())["champion"] == "1"
    model = MlflowClient(uri).get_registered_model("test_promoted_overtaken_and_put_back")
    assert {a: str(v) for a, v in model.aliases.items()} == {"champion": "2", "previous": "1"}


def test_a_champion_of_other_items_needs_an_evaluation_on_these(uri: str, tmp_path: Path):
    own = content_digest(tmp_path / "model")
    old = evaluation(uri, tmp_path / "old", benchmark="cd" * 32, checkpoint=own)
    toolwise(
        *(
            "promote",
            "--model",
            tmp_path / "model",
            "--challenger",
            old,
            "--baseline",
            stage_before(old),
        ),
        *("--out", tmp_path / "decision.json"),
    )
    new = evaluation(uri, tmp_path / "new", checkpoint="c2" * 32)
    champion = evaluation(uri, tmp_path / "champion-again", checkpoint=own)
    policy = tmp_path / "policy.yaml"
    policy.write_text("{}")
    judging = (
        "promote",
        "--dry-run",
        "--challenger",
        new,
        "--baseline",
        stage_before(new),
        "--policy",
        policy,
    )
    assert "the champion cannot be compared with: it answered other items" in toolwise(*judging)
    told = toolwise(*judging, "--champion", champion)
    assert "promote (greedy answers" in told
    assert "accuracy compared with the champion (version 1)" in told


@pytest.mark.parametrize(("other", "named"), [("c3" * 32, "c3" * 32), (None, "it does not name")])
def test_an_evaluation_of_another_model_is_not_taken_for_the_champions(
    uri: str, tmp_path: Path, other: str | None, named: str
):
    own, next_own = (content_digest(tmp_path / name) for name in ("model", "next"))
    old = evaluation(uri, tmp_path / "old", benchmark="cd" * 32, checkpoint=own)
    promoting = ("promote", "--baseline", stage_before(old))
    toolwise(
        *(*promoting, "--model", tmp_path / "model"),
        *("--challenger", old, "--out", tmp_path / "first.json"),
    )
    new = evaluation(uri, tmp_path / "new", checkpoint=next_own)
    foreign = evaluation(uri, tmp_path / "foreign", checkpoint=other)
    # Not even where a champion that cannot be compared may be passed over.
    policy = tmp_path / "policy.yaml"
    policy.write_text("incomparable_champion: baseline")
    for more in (("--dry-run",), ("--out", tmp_path / "second.json")):
        told = refused(
            *(*promoting, "--model", tmp_path / "next", "--challenger", new),
            *("--champion", foreign, "--policy", policy, *more),
        )
        assert f"foreign: an evaluation of {'the checkpoint ' if other else 'a '}" in told
        assert named in told
        assert "the champion, version 1 of" in told
        assert own in told
        assert f"evaluate the checkpoint at {tmp_path / 'model'}" in told
    assert len(toolwise("decisions").splitlines()) == 2
    assert not (tmp_path / "second.json").exists()


def test_an_evaluation_of_another_model_registers_nothing(uri: str, tmp_path: Path):
    new = evaluation(uri, tmp_path / "new", checkpoint=content_digest(tmp_path / "next"))
    judging = (
        "promote",
        "--challenger",
        new,
        "--baseline",
        stage_before(new),
        "--model",
        tmp_path / "model",
    )
    for more in (("--dry-run",), ("--out", tmp_path / "decision.json")):
        told = refused(*judging, *more)
        assert f"new: an evaluation of the checkpoint {content_digest(tmp_path / 'next')}" in told
        assert f"{tmp_path / 'model'} is {content_digest(tmp_path / 'model')}" in told
    assert toolwise("decisions").count("\n") == 1
    # Which checkpoint a server had loaded cannot be known.
    facts = json.loads((new / "metrics.json").read_text())
    facts |= {"checkpoint": "m at http://h", "model": {"base_url": "http://h", "model": "m"}}
    (new / "metrics.json").write_text(json.dumps(facts))
    assert "promote (greedy answers" in toolwise(*judging, "--dry-run")


def test_an_evaluation_of_a_checkpoint_it_does_not_name_registers_nothing(uri: str, tmp_path: Path):
    new = evaluation(uri, tmp_path / "new", checkpoint=None)
    judging = ("promote", "--challenger", new, "--baseline", stage_before(new))
    told = refused(*judging, "--model", tmp_path / "model", "--out", tmp_path / "decision.json")
    assert "new: an evaluation of a checkpoint it does not name" in told


def test_a_checkpoint_is_not_compared_with_itself(uri: str, tmp_path: Path):
    first, again = (evaluation(uri, tmp_path / name) for name in ("first", "again"))
    told = refused("promote", "--dry-run", "--challenger", first, "--baseline", again)
    assert "which is the challenger; the baseline is the stage that it was trained from" in told


def test_without_a_champion_none_can_be_given(uri: str, tmp_path: Path):
    new = evaluation(uri, tmp_path / "new", checkpoint="c2" * 32)
    told = refused(
        *(
            "promote",
            "--dry-run",
            "--challenger",
            new,
            "--baseline",
            stage_before(new),
            "--champion",
            new,
        )
    )
    assert "has no champion that this could be an evaluation of; leave --champion out" in told


def test_a_step_cut_off_after_the_promotion_decides_the_same_again(uri: str, tmp_path: Path):
    first, second = (evaluation(uri, tmp_path / name) for name in ("first", "second"))
    decided = []
    for number, challenger in enumerate((first, second, second), 1):
        out = tmp_path / f"decision-{number}.json"
        toolwise(
            *("promote", "--model", tmp_path / "model", "--challenger", challenger),
            *("--baseline", stage_before(first), "--out", out),
        )
        decided.append(json.loads(out.read_text()))
    assert decided[2] == decided[1]
    assert decided[1]["champion"] == "1"
    assert len(toolwise("decisions").splitlines()) == 3


def run_gate(folder: Path, model: str, challenger: Path, out: str) -> dict[str, Any]:
    """The decision of a pipeline's gate, on the machine where its work folders are kept."""
    promoted = COMPONENT(
        settings="{}",
        seed=0,
        model=dsl.Model(uri=str(folder / model)),
        challenger=dsl.Artifact(uri=str(challenger)),
        baseline=dsl.Artifact(uri=str(stage_before(challenger))),
        decision=dsl.Artifact(uri=str(folder / out)),
    )
    decision = json.loads((folder / out).read_text())
    assert promoted == (decision["decision"] == "promote")
    return decision


def test_a_pipeline_run_again_is_judged_against_the_champion_of_today(uri: str, tmp_path: Path):
    evaluations = {
        model: evaluation(
            uri, tmp_path / f"of-{model}", checkpoint=content_digest(tmp_path / model)
        )
        for model in ("model", "next")
    }
    name = "test_a_pipeline_run_again_is_judged_against_the_champion_of_today"
    client, registry = MlflowClient(uri), Registry(name, tracking.Connection(uri))

    def runs(model: str, out: str) -> tuple[str, str | None, dict[str, str]]:
        decision = run_gate(tmp_path, model, evaluations[model], out)
        aliases = client.get_registered_model(name).aliases
        standing = {alias: str(version) for alias, version in aliases.items()}
        return decision["decision"], decision["champion"], standing

    first, second = {"champion": "1", "previous": "2"}, {"champion": "2", "previous": "1"}
    assert runs("model", "1.json") == ("promote", None, {"champion": "1"})
    assert runs("next", "2.json") == ("promote", "1", second)
    assert runs("model", "3.json") == ("promote", "2", first)
    # It is the champion: nothing changes, and the deployment goes on.
    assert runs("model", "4.json") == ("promote", "2", first)
    registry.rollback("slow")
    assert runs("model", "5.json") == ("promote", "2", first)
    assert [(e.action, e.version, e.against) for e in registry.decisions()] == [
        ("promote", "1", None),
        ("promote", "2", "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
        ("promote", "1", "2"),
    ]
    assert len(client.search_model_versions(f"name = '{name}'")) == 2


def test_a_rejection_that_nothing_has_changed_is_in_the_log_once(uri: str, tmp_path: Path):
    reflex = evaluation(uri, tmp_path / "reflex", redundant=30)
    for out in ("1.json", "2.json"):
        assert run_gate(tmp_path, "model", reflex, out)["decision"] == "reject"
    name = "test_a_rejection_that_nothing_has_changed_is_in_the_log_once"
    registry = Registry(name, tracking.Connection(uri))
    assert [(e.action, e.version) for e in registry.decisions()] == [("reject", "1")]


def test_a_step_that_fails_before_the_aliases_move_has_promoted_nothing(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    challenger, out = evaluation(uri, tmp_path / "e"), tmp_path / "decision.json"
    promoting = (
        *("promote", "--model", tmp_path / "model", "--challenger", challenger),
        *("--baseline", stage_before(challenger), "--out", out),
    )

    def away(*_: object) -> None:
        raise BackendError("MLflow is away")

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "describe", away)
        assert "MLflow is away" in refused(*promoting)
    name = "test_a_step_that_fails_before_the_aliases_move_has_promoted_nothing"
    client = MlflowClient(uri)
    assert client.get_registered_model(name).aliases == {}
    assert toolwise("decisions").count("\n") == 1
    toolwise(*promoting)
    assert json.loads(out.read_text())["decision"] == "promote"
    [version] = client.search_model_versions(f"name = '{name}'")
    assert client.get_registered_model(name).aliases == {"champion": version.version}


def test_a_card_longer_than_a_description_is_a_file_and_its_short_form_the_description(
    uri: str, tmp_path: Path
):
    run = tracking.PipelineRun("promoting", "with all settings of the demo")
    profile = load_profile("demo")
    with tracking.step(run, "train-hdpo", params=profile.hdpo, uri=uri) as step:
        step.writes_model(tmp_path / "model", "hdpo")
    challenger = evaluation(uri, tmp_path / "e", of=tmp_path / "model")
    toolwise(
        *("promote", "--model", tmp_path / "model", "--challenger", challenger),
        *("--baseline", stage_before(challenger), "--out", tmp_path / "decision.json"),
    )
    name = "test_a_card_longer_than_a_description_is_a_file_and_its_short_form_the_description"
    client = MlflowClient(uri)
    text = client.get_model_version_by_alias(name, "champion").description or ""
    assert len(text) <= 5000
    [address] = re.findall(r"in the whole card, `(runs:/\w+/model_card\.md)`", text)
    card = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path / "card")))
    assert "| w_tool | 0.15 |" in card.read_text()


def test_an_evaluation_that_is_on_no_run_is_explained_but_not_registered(uri: str, tmp_path: Path):
    folder = evaluation(uri, tmp_path / "e")
    (folder / RUN_ID_FILE).unlink()
    judging = ("promote", "--challenger", folder, "--baseline", stage_before(folder))
    assert "promote (greedy answers" in toolwise(*judging, "--dry-run")
    told = refused(*judging, "--model", tmp_path / "model", "--out", tmp_path / "decision.json")
    assert "no mlflow_run file, which names the MLflow run of the evaluation" in told


def test_without_dry_run_the_model_and_the_place_are_asked_for(uri: str, tmp_path: Path):
    folder = evaluation(uri, tmp_path / "e")
    arguments = ["promote", "--challenger", str(folder), "--baseline", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "--model" in result.output + result.stderr


def test_a_folder_is_registered_with_a_server_which_cannot_look_into_it(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    client, name = MlflowClient(mlflow_server.uri), "by-hand"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    for number, model in enumerate(("model", "next"), 1):
        own = content_digest(tmp_path / model)
        measured = evaluation(mlflow_server.uri, tmp_path / f"of-{model}", checkpoint=own)
        toolwise(
            *("promote", "--model", tmp_path / model, "--challenger", measured),
            *("--baseline", stage_before(measured), "--out", tmp_path / f"decision-{number}.json"),
        )
        version = client.get_model_version_by_alias(name, "champion")
        assert str(version.version) == str(number)
        lineage = read_lineage(tracking.Connection(mlflow_server.uri), str(version.run_id))
        assert version.source == f"models:/{lineage.model_id}"
        assert version.tags["toolwise.checkpoint"] == str(tmp_path / model)
    assert "Version 1 of by-hand is the champion again" in toolwise("rollback", "--reason", "slow")
    champion = Registry(name, tracking.Connection(mlflow_server.uri)).champion()
    assert champion is not None
    assert champion.source == str(tmp_path / "model")


def test_in_a_pod_the_address_is_registered_and_not_where_it_is_mounted(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "in-a-pod")
    monkeypatch.setattr(artifact_types, "_S3_LOCAL_MOUNT_PREFIX", f"{tmp_path}/")
    address = "s3://bucket/runs/1/model"
    model = tmp_path / address.removeprefix("s3://")
    model.mkdir(parents=True)
    own = evaluation(mlflow_server.uri, tmp_path / "measured", checkpoint=content_digest(model))
    measured, before = dsl.Artifact(uri=str(own)), dsl.Artifact(uri=str(stage_before(own)))
    # A pod that is tried again finds nothing of the first, and registers nothing twice.
    for attempt in ("first", "second"):
        monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path / attempt))
        COMPONENT(
            settings="{}",
            seed=0,
            model=dsl.Model(uri=address),
            challenger=measured,
            baseline=before,
            decision=dsl.Artifact(uri=str(tmp_path / f"{attempt}.json")),
        )
    [version] = MlflowClient(mlflow_server.uri).search_model_versions("name = 'in-a-pod'")
    assert version.source == version.tags["toolwise.checkpoint"] == address
    assert f"| checkpoint | `{address}` |" in str(version.description)
