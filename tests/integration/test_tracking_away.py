"""A real MLflow server that is killed, slow, or loses its replies, while a step goes on."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer, Proxy

from toolwise import tracking
from toolwise.errors import BackendError
from toolwise.promotion.registry import Registry
from toolwise.tracking import Connection, PipelineRun
from toolwise.tracking.spool import SPOOL_VARIABLE

DIES = """
import os, signal, sys
from toolwise import tracking
with tracking.step(tracking.PipelineRun("away", "run"), "dies", params={"rate": 0.5}) as run:
    for number in range(30):
        run.log({"loss": float(number)}, number)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(SPOOL_VARIABLE, str(tmp_path / "spool"))
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolwise.retry.FIRST_WAIT", 0.01)
    monkeypatch.setattr("toolwise.retry.LONGEST_WAIT", 0.05)


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[Callable[[Callable[[str], bool]], Proxy]]:
    opened: list[Proxy] = []

    def open_proxy(spoil: Callable[[str], bool]) -> Proxy:
        opened.append(Proxy(mlflow_server.uri, spoil))
        return opened[-1]

    yield open_proxy
    for one in opened:
        one.close()


def steps_of(client: MlflowClient, run_id: str, metric: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, metric)]


def spools() -> list[Path]:
    return [*Path(os.environ[SPOOL_VARIABLE]).glob("*/*")]


def test_a_reply_that_is_lost_puts_nothing_there_twice(
    mlflow_server: MlflowServer, proxy: Callable[..., Proxy], quick: None, tmp_path: Path
):
    lost: set[str] = set()

    def lose_the_first_write_of_each_kind(path: str) -> bool:
        kind = path.partition("?")[0]
        if kind in lost or kind.endswith(("search", "get", "get-by-name")):
            return False
        lost.add(kind)
        return True

    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"w")
    between = proxy(lose_the_first_write_of_each_kind)
    with tracking.step(PipelineRun("lossy", "run"), "train", uri=between.uri) as run:
        run.params({"rate": 0.5})
        run.writes_model(checkpoint, "hdpo", step=40)
        run.dataset(checkpoint / "weights", "training")
        for number in range(50):
            run.log({"loss": 1.0 / (number + 1)}, number)
    assert {path.rpartition("/")[2] for path in lost} >= {"create", "log-batch", "outputs"}

    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("lossy")
    assert experiment is not None
    stored = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name or "" for run in stored) == ["run", "train"]
    trained = client.get_run(run.run_id)
    assert trained.info.status == "FINISHED"
    assert trained.data.params == {"rate": "0.5"}
    assert sorted(steps_of(client, run.run_id, "loss")) == list(range(50))
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
    assert trained.outputs is not None
    assert [output.step for output in trained.outputs.model_outputs] == [40]
    assert len(trained.inputs.dataset_inputs) == 1
    assert spools() == []


def test_a_slow_server_does_not_hold_up_training(
    mlflow_server: MlflowServer, proxy: Callable[..., Proxy]
):
    trained = threading.Event()
    held: list[bool] = []

    def hold_metrics_until_training_is_over(path: str) -> bool:
        if path.endswith("log-batch"):
            held.append(trained.wait(60))
        return False

    between = proxy(hold_metrics_until_training_is_over)
    with tracking.step(PipelineRun("slow", "run"), "train", uri=between.uri) as run:
        for number in range(300):
            run.log({"loss": float(number)}, number)
        trained.set()
    assert all(held)
    client = MlflowClient(mlflow_server.uri)
    assert sorted(steps_of(client, run.run_id, "loss")) == list(range(300))


def test_metrics_arrive_in_the_order_they_were_logged(
    mlflow_server: MlflowServer, proxy: Callable[..., Proxy], quick: None
):
    batches = 0

    def lose_every_second_batch(path: str) -> bool:
        nonlocal batches
        batches += path.endswith("log-batch")
        return path.endswith("log-batch") and batches % 2 == 1

    between = proxy(lose_every_second_batch)
    client = MlflowClient(mlflow_server.uri)
    with tracking.step(PipelineRun("ordered", "run"), "train", uri=between.uri) as run:
        for number in range(8):
            run.log({"loss": 0.5}, number)
            run.flush()
            assert steps_of(client, run.run_id, "loss") == list(range(number + 1))
    assert batches == 16


def test_what_was_queued_while_the_server_was_away_is_sent_in_the_order_it_was_logged(
    proxy: Callable[..., Proxy], quick: None
):
    between = proxy(lambda _: False)
    with tracking.step(PipelineRun("queued", "run"), "train", uri=between.uri) as run:
        run.flush()
        between.away = True
        run.params({"rate": 0.5})
        for number in range(3):
            run.log({"loss": 1.0}, number)
        run.tag("note", "a")
        run.log({"loss": 1.0}, 3)
        run.tag("note", "b")
        run.params({"late": 1})
        with pytest.raises(BackendError):
            run.flush()
        between.away = False
        before = len(between.paths)
        run.flush()
    told: list[object] = []
    for path, body in zip(between.paths[before:], between.bodies[before:], strict=True):
        if path.endswith("log-batch"):
            batch = json.loads(body)
            told.append([metric["step"] for metric in batch.get("metrics", [])])
            told.append([param["key"] for param in batch.get("params", [])])
        elif path.endswith("set-tag"):
            told.append(json.loads(body)["value"])
    assert [one for one in told if one] == [["rate"], [0, 1, 2], "a", [3], "b", ["late"]]


def test_a_step_that_ended_while_the_server_was_away_is_not_marked_as_killed_by_the_next(
    mlflow_server: MlflowServer, proxy: Callable[..., Proxy], quick: None
):
    between = proxy(lambda _: False)
    run_of = PipelineRun("ended", "run")
    with tracking.step(run_of, "train", uri=between.uri) as first:
        first.flush()
        between.away = True
        first.log({"loss": 0.5}, 1)
    client = MlflowClient(mlflow_server.uri)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    between.away = False
    with tracking.step(run_of, "train", uri=between.uri):
        pass
    assert not [
        body for body in between.bodies if b"KILLED" in body or b"the process was killed" in body
    ]
    stored = client.get_run(first.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics == {"loss": 0.5}
    assert tracking.FAILURE_TAG not in stored.data.tags


def test_a_version_whose_registration_got_no_reply_is_registered_once(
    mlflow_server: MlflowServer, proxy: Callable[..., Proxy], quick: None
):
    lost: list[str] = []

    def lose_the_first_creation(path: str) -> bool:
        if lost or not path.endswith("model-versions/create"):
            return False
        lost.append(path)
        return True

    connection = Connection(proxy(lose_the_first_creation).uri)
    run_id = connection.client.create_run("0").info.run_id
    version = Registry("registered-once", connection).register(run_id, "s3://bucket/model")
    assert lost
    found = MlflowClient(mlflow_server.uri).search_model_versions("name = 'registered-once'")
    assert [str(one.version) for one in found] == [version]


def test_what_mlflow_refuses_for_good_is_kept_aside_and_the_rest_goes_on(
    mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture
):
    with tracking.step(PipelineRun("refused", "run"), "train", uri=mlflow_server.uri) as run:
        run.params({"rate": 0.5})
        run.flush()
        run.params({"rate": 0.7})  # MLflow keeps the first value of a parameter
        run.log({"loss": 0.5})
    stored = MlflowClient(mlflow_server.uri).get_run(run.run_id)
    assert stored.data.params == {"rate": "0.5"}
    assert stored.data.metrics == {"loss": 0.5}
    assert stored.info.status == "FINISHED"
    (refused,) = spools()
    assert '"rate":"0.7"' in refused.read_text()
    assert str(refused) in caplog.text


def test_training_goes_on_while_the_server_is_down_and_all_of_it_arrives_once_it_is_back(
    mlflow_server: MlflowServer, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also what a process has left that never saw the server, and was killed."""
    monkeypatch.setattr("toolwise.tracking.sender.OPENING_SECONDS", 2.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    mlflow.set_tracking_uri(mlflow_server.uri)
    report = tmp_path / "report.json"
    report.write_text("{}")
    with tracking.step(PipelineRun("away", "run"), "train") as run:
        for number in range(100):
            if number == 30:
                run.flush()
                mlflow_server.kill()
            run.log({"loss": float(number)}, number)
        run.artifact(report)
        report.unlink()
        with pytest.raises(BackendError, match=rf"MLflow at {mlflow_server.uri} failed 5 times"):
            run.flush()
    assert len(spools()) == 1
    with tracking.step(PipelineRun("away", "run"), "never seen") as unseen:
        unseen.log({"loss": 1.0})
    assert subprocess.run([sys.executable, "-c", DIES]).returncode == -9
    tracking.end_pipeline_run(PipelineRun("away", "run"), failure="MLflow was away")
    assert len(spools()) == 4

    mlflow_server.start()
    with tracking.step(PipelineRun("away", "another run"), "train"):
        pass
    assert spools() == []
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("away")
    assert experiment is not None
    stored = {
        run.info.run_name: run
        for run in client.search_runs([experiment.experiment_id], "tags.`toolwise.step` != ''")
    }
    by_id = client.get_run(run.run_id)
    assert by_id.info.status == "FINISHED"
    assert sorted(steps_of(client, run.run_id, "loss")) == list(range(100))
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["report.json"]
    assert stored["never seen"].info.status == "FINISHED"
    assert stored["never seen"].data.metrics == {"loss": 1.0}
    dead = stored["dies"]
    assert dead.info.status == "KILLED"
    assert dead.data.params == {"rate": "0.5"}
    assert sorted(steps_of(client, dead.info.run_id, "loss")) == list(range(30))
    parents = client.search_runs(
        [experiment.experiment_id], f"tags.`{tracking.PIPELINE_RUN_TAG}` = 'run'"
    )
    assert [parent.data.tags[tracking.FAILURE_TAG] for parent in parents] == ["MLflow was away"]
    assert parents[0].info.status == "FAILED"
