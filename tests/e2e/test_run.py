"""The whole pipeline on this machine: killed, resumed, run again, with another seed."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest
import yaml

from pipelines.metis import STEPS
from toolwise.events import Event, EventReader

SMOKE = Path(__file__).parents[2] / "pipelines" / "profiles" / "smoke.yaml"


class Runs:
    """Runs of the profile `smoke`, with a gate that lets everything pass, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "smoke"
        self.environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
        self.profile = folder / "smoke.yaml"
        self.port = _free_port()
        content = yaml.safe_load(SMOKE.read_text())
        content["promote"] = {
            "redundant_call_rate_max": 1,
            "necessary_call_rate_min": 0,
            "accuracy_drop_max": 1,
            "min_items": 1,
        }
        content["serve"]["port"] = self.port
        self.profile.write_text(yaml.safe_dump(content))

    def start(self, seed: int = 0) -> subprocess.Popen[str]:
        (self.folder / "events.jsonl").unlink(missing_ok=True)
        command = [sys.executable, "-m", "toolwise.cli", "run", "--profile", str(self.profile)]
        return subprocess.Popen(
            [*command, "--seed", str(seed), "--run-dir", str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )

    def finish(self, seed: int = 0) -> str:
        process = self.start(seed)
        output, _ = process.communicate()
        log = self.folder / "pipeline.log"
        assert process.returncode == 0, f"{output}\n{log.read_text()[-3000:]}"
        return output

    def follow_until(self, process: subprocess.Popen[str], step: str, state: str) -> list[Event]:
        """The events up to the one wanted; fails if the run ends before."""
        reader = EventReader(self.folder / "events.jsonl")
        seen: list[Event] = []
        while not any((event.step, event.state) == (step, state) for event in seen):
            with suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=0.2)
                pytest.fail(f"the run ended before {step}: {state}\n{output}")
            seen += reader.new()
        return seen

    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text())

    def stop(self) -> None:
        command = [sys.executable, "-m", "toolwise.cli", "stop", "--run-dir", str(self.folder)]
        subprocess.run(command, check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.stop()


@pytest.fixture(scope="module")
def killed(runs: Runs) -> list[psutil.Process]:
    """A run whose command is killed while the base model trains; returns what it had started."""
    process = runs.start()
    runs.follow_until(process, "base-model", "progress")
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return started


@pytest.fixture(scope="module")
def first(runs: Runs, killed: list[psutil.Process]) -> str:
    """Output of the run that took up where the killed one was."""
    return runs.finish()


def test_nothing_outlives_a_killed_run(killed: list[psutil.Process]):
    assert len(killed) >= 2
    _, alive = psutil.wait_procs(killed, timeout=20)
    assert alive == []


def test_a_killed_run_is_taken_up_where_it_was(first: str):
    lines = first.splitlines()
    if "prepare-data: started" in lines:  # it was cut off before it was done
        assert lines.index("prepare-data: started") < lines.index("train-sft: started")
    else:
        assert "prepare-data: re-used" in lines
    assert "base-model: started" in lines


def test_every_step_ran(first: str):
    for step in STEPS:
        assert f"{step}: done in" in first or f"{step}: re-used" in first


def test_the_report_has_every_stage_metric_interval_and_step(runs: Runs, first: str):
    report = runs.report()
    assert report["seed"] == 0
    assert set(report["seconds"]) == set(STEPS) - {"report"}
    for stage in ("base", "sft", "hdpo"):
        for mode in ("greedy", "sampled"):
            groups = report["stages"][stage][mode]
            assert set(groups) == {"overall", "perception", "math", "search"}
            for metrics in groups.values():
                for metric in metrics.values():
                    assert set(metric) == {"value", "count", "low", "high"}
    assert report["gate"]["decision"] == "promote"
    assert {c["name"] for c in report["gate"]["criteria"]} == {
        "redundant_call_rate",
        "necessary_call_rate",
        "accuracy_drop",
    }
    assert len(report["endpoint"]["answers"]) == 2
    assert report["versions"]["kfp"]
    assert (runs.folder / "report.html").stat().st_size > 10_000


def test_the_end_says_where_everything_is(runs: Runs, first: str):
    for place in (
        str(runs.folder / "report.html"),
        str(runs.folder / "report.json"),
        "make mlflow-ui",
        f"http://127.0.0.1:{runs.port}/openai/v1",
    ):
        assert place in first


def test_mlflow_has_one_finished_run_with_a_nested_run_per_step(runs: Runs, first: str):
    mlflow.set_tracking_uri(runs.environment["MLFLOW_TRACKING_URI"])
    found = mlflow.search_runs(experiment_names=["smoke"], output_format="list")
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    finished = {run.info.run_name for run in found if run.info.status == "FINISHED"}
    assert set(STEPS) <= finished
    champion = mlflow.MlflowClient().get_model_version_by_alias("smoke", "champion")
    assert champion.tags["toolwise.decision"] == "promote"


def test_run_again_it_uses_what_is_there_and_asks_the_gate_and_the_endpoint_anew(
    runs: Runs, first: str
):
    before = runs.report()
    lines = runs.finish().splitlines()
    for step in STEPS:
        ending = "started" if step in ("promote", "deploy", "report") else "re-used"
        assert f"{step}: {ending}" in lines, step
    assert "missing artifact" not in (runs.folder / "pipeline.log").read_text()
    after = runs.report()
    assert after["stages"] == before["stages"]
    assert after["gate"] == before["gate"]
    assert after["endpoint"]["pid"] != before["endpoint"]["pid"]


def test_another_seed_runs_afresh(runs: Runs, first: str):
    process = runs.start(seed=1)
    seen = runs.follow_until(process, "base-model", "progress")
    process.terminate()
    process.wait()
    assert "reused" not in {event.state for event in seen}
