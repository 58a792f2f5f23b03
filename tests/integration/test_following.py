"""A run is followed to its end, whatever the server and the network do in between."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_server import ClusterServer, World
from pipelines_server import PASSWORD, USER, Pipelines, PipelinesServer, run, task
from rich.console import Console

from pipelines.metis import plan
from pipelines.submission.api import PipelinesApi
from pipelines.submission.authentication import Cookie, credentials
from pipelines.submission.following import Follower, LostSight, RunFailed, step_name
from pipelines.submission.pod_logs import PodLogs
from pipelines.submission.server import Server
from toolwise.profile import load_profile

PLAN = plan(load_profile("qwen3-vl-8b"))
PODS = "/api/v1/namespaces/kubeflow/pods"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def server() -> Iterator[PipelinesServer]:
    started = PipelinesServer(Pipelines())
    yield started
    started.stop()


class Following:
    """A follower whose waits are the test's to fill, and what it has shown."""

    def __init__(
        self,
        server: PipelinesServer,
        between: Callable[[int], object] = lambda _: None,
        **parts: Any,
    ) -> None:
        self.waits = 0
        self.console = Console(file=io.StringIO(), width=200)
        self.between = between
        access = parts.pop("access", None) or credentials(server.url, {})
        api = PipelinesApi(Server(server.url, "here"), access)
        logs = PodLogs("kubeflow", "r1")
        again = "toolwise follow r1 --profile mine.yaml"
        self.follower = Follower(
            api, "r1", again, PLAN, self.console, logs, wait=self._wait, **parts
        )

    def _wait(self, seconds: float) -> None:
        self.waits += 1
        assert self.waits < 1000, "it waits for ever"
        self.between(self.waits)

    @property
    def shown(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.shown.splitlines()


def test_steps_are_shown_as_they_start_and_end_each_once(server: PipelinesServer):
    driver = task("train-sft-driver", "SUCCEEDED", 0, 1)
    trained = task("train-sft", "SUCCEEDED", 1, 31)
    around = (driver, task("root", "RUNNING"), task("executor", "RUNNING", 1))
    server.state.runs = [
        run("PENDING"),
        run("RUNNING", *around, task("train-sft", "RUNNING", 1)),
        run("RUNNING", *around, task("train-sft", "RUNNING", 1)),
        run("RUNNING", trained, task("gather-2", "RUNNING", 32)),
        run(
            "SUCCEEDED",
            task("train-sft", "SUCCEEDED", 1, 31),
            task("gather-2", "SUCCEEDED", 32, 34),
        ),
    ]
    following = Following(server)
    following.follower.follow()
    assert [line for line in following.lines if not line.startswith("no logs")] == [
        "train-sft: started",
        "train-sft: done in 30s",
        "evaluate sft: started",
        "evaluate sft: done in 2s",
    ]
    assert "no cluster is configured here" in following.shown


def test_the_benchmarks_of_a_checkpoint_are_one_step_with_progress(server: PipelinesServer):
    answers = [task("answer", "SUCCEEDED", 1, 9), task("answer", "RUNNING", 2)]
    server.state.runs = [run("RUNNING", *answers), run("SUCCEEDED")]
    following = Following(server)
    following.follower.follow()
    row = next(row for row in following.follower._board.rows if row.name == "answer base")
    assert (row.state, row.done, row.total) == ("running", 1, 2)
    assert "answer base: started" in following.lines


def test_a_server_that_dies_and_comes_back_is_waited_for(server: PipelinesServer):
    server.state.runs = [run("RUNNING"), 503, run("RUNNING"), run("SUCCEEDED")]

    def between(waits: int) -> None:
        if waits == 1:
            server.stop()
        if waits == 4:
            server.start()

    following = Following(server, between)
    following.follower.follow()
    assert following.waits == 6
    assert "the run goes on, and so do we" in following.shown
    assert following.shown.count("no Kubeflow Pipelines server answers") == 1


def test_a_server_that_stays_away_is_given_up_and_the_run_is_not(server: PipelinesServer):
    server.state.runs = [502]
    following = Following(server, poll=5.0, patience=60.0)
    with pytest.raises(
        LostSight, match=r"away for 60 seconds(.|\n)*toolwise follow r1 --profile mine\.yaml"
    ):
        following.follower.follow()
    assert following.waits == 12


@pytest.mark.parametrize("garbage", ["<html>Bad gateway", {"state": "RUNNING"}, {"run_id": "r1"}])
def test_garbage_is_no_news_of_the_run(server: PipelinesServer, garbage: Any):
    server.state.runs = [garbage, garbage, run("SUCCEEDED")]
    following = Following(server)
    following.follower.follow()
    assert following.waits == 2


def test_a_failed_run_names_its_steps_and_why(server: PipelinesServer):
    failed = task("train-hdpo", "FAILED", 1, 5, "exit status 1")
    server.state.runs = [run("FAILED", failed, task("train-sft", "SUCCEEDED", 0, 1), error="no")]
    following = Following(server)
    with pytest.raises(RunFailed) as raised:
        following.follower.follow()
    assert str(raised.value) == "run r1 failed\nno\ntrain-hdpo failed: exit status 1"
    assert "train-hdpo: failed after 4s: exit status 1" in following.lines


def test_a_cancelled_run_is_told_from_a_failed_one(server: PipelinesServer):
    server.state.runs = [run("CANCELING"), run("CANCELED", task("train-sft", "CANCELED", 1, 2))]
    following = Following(server)
    with pytest.raises(RunFailed, match="run r1 was cancelled"):
        following.follower.follow()
    assert "the run is canceling" in following.shown


def test_an_expired_session_is_renewed_at_dex_and_an_expired_cookie_is_told():
    dex = PipelinesServer(Pipelines(sessions=set()))
    sessions = dex.state.sessions
    assert sessions is not None
    try:
        login = {"KFP_USERNAME": USER, "KFP_PASSWORD": PASSWORD}
        dex.state.runs = [run("RUNNING"), run("SUCCEEDED")]
        expires = Following(dex, lambda _: sessions.clear(), access=credentials(dex.url, login))
        expires.follower.follow()
        assert dex.state.logins == 2
        sessions.add("mine")
        dex.state.runs = [run("RUNNING")]
        cookie = Cookie("oauth2_proxy_kubeflow=mine")
        following = Following(dex, lambda _: sessions.clear(), access=cookie)
        told = r"does not take KFP_COOKIE(.|\n)*The run goes on(.|\n)*toolwise follow r1"
        with pytest.raises(LostSight, match=told):
            following.follower.follow()
    finally:
        dex.stop()


def pod(name: str, node: str) -> dict[str, Any]:
    annotations = {"workflows.argoproj.io/node-name": node}
    return {"metadata": {"name": name, "annotations": annotations}, "status": {"phase": "Running"}}


def test_the_pods_logs_are_shown_and_end_up_in_the_error(
    server: PipelinesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world = World()
    cluster = ClusterServer(world)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
    world.objects[PODS] = {
        "kind": "PodList",
        "items": [
            pod("a", "metis-1.root.run.train-hdpo.executor"),
            pod("b", "metis-1.root.run.train-hdpo-driver"),
        ],
    }
    log = ["2026-01-01T00:00:01Z loading", "2026-01-01T00:00:02Z train-hdpo: progress 3/10 step"]
    world.texts[f"{PODS}/a/log"] = "\n".join(log)

    def between(waits: int) -> None:
        world.texts[f"{PODS}/a/log"] = "\n".join([*log, "2026-01-01T00:00:03Z out of memory"])

    running = run("RUNNING", task("train-hdpo", "RUNNING", 1))
    server.state.runs = [running, run("FAILED", task("train-hdpo", "FAILED", 1, 5))]
    following = Following(server, between)
    with pytest.raises(RunFailed) as raised:
        following.follower.follow()
    cluster.close()
    assert following.lines == [
        "train-hdpo: started",
        "train-hdpo | loading",
        "train-hdpo: failed after 4s: ",
        "train-hdpo | out of memory",
    ]
    assert str(raised.value).splitlines()[-1] == "    out of memory"
    row = next(row for row in following.follower._board.rows if row.name == "train-hdpo")
    assert (row.done, row.total) == (3, 10)
    assert json.dumps(world.asked).count("pipeline%2Frunid%3Dr1") >= 1


def test_the_log_of_a_pod_that_has_ended_is_read_once(
    server: PipelinesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world = World()
    cluster = ClusterServer(world)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
    running = pod("a", "metis-1.root.run.train-hdpo.executor")
    ended = running | {"status": {"phase": "Failed"}}
    world.objects[PODS] = {"kind": "PodList", "items": [running]}
    world.texts[f"{PODS}/a/log"] = "2026-01-01T00:00:01Z loading"

    def between(waits: int) -> None:
        if waits == 2:
            world.objects[PODS]["items"] = [ended]
            world.texts[f"{PODS}/a/log"] += "\n2026-01-01T00:00:02Z out of memory"

    going = run("RUNNING", task("train-hdpo", "RUNNING", 1))
    server.state.runs = [*[going] * 6, run("SUCCEEDED")]
    following = Following(server, between)
    following.follower.follow()
    cluster.close()
    assert "train-hdpo | out of memory" in following.lines
    assert sum("/a/log" in path for path in world.asked) == 3


def test_a_task_that_is_tried_again_is_the_same_step():
    assert step_name("train-hdpo(0)", PLAN.labels) == "train-hdpo"
    assert step_name("gather-3", PLAN.labels) == "evaluate hdpo"
    assert step_name("answer-2(1:vstar)", PLAN.labels) == "answer sft"
