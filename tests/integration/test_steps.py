"""A step does its work once, tells how it went, and survives being killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from kfp import dsl
from typer.testing import CliRunner

from components.finish.component import finish
from toolwise.cli import app
from toolwise.errors import InputError
from toolwise.events import Event
from toolwise.steps import Step, perform
from toolwise.tracking import FAILURE_TAG

ONCE_KILLED = """
import os, signal, sys
from pathlib import Path
from toolwise.steps import Step, perform

def work(step: Step) -> dict[str, Path]:
    partial = step.folder / "partial"
    if not partial.exists():
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    output = step.folder / "output"
    output.write_text(partial.read_text() + " and whole")
    return {"output": output}

done = perform(work, "killed", "{}", 0, {})
print(done.outputs["output"].read_text())
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path / "steps"))
    monkeypatch.setenv("TOOLWISE_RUN", "a run")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "steps")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("TOOLWISE_EVENTS", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")


def writes(text: str) -> Callable[[Step], dict[str, Path]]:
    def work(step: Step) -> dict[str, Path]:
        output = step.folder / "output"
        output.write_text(text)
        step.run.log({"loss": 0.5}, 1)
        return {"output": output}

    return work


def refuse(step: Step) -> dict[str, Path]:
    raise AssertionError("the work was done again")


def test_a_step_by_hand_is_tracked_where_the_gate_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(None)
    done = CliRunner().invoke(app, ["prepare-data", "--profile", "smoke", "--out", "data"])
    assert done.exit_code == 0, done.output
    tracked = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = tracked.get_experiment_by_name("smoke")
    assert experiment is not None
    assert tracked.search_runs([experiment.experiment_id])


def test_work_is_done_once_per_settings_seed_and_inputs(tmp_path: Path):
    told: list[Event] = []
    first = perform(writes("one"), "train", "{}", 0, {}, sink=told.append)
    again = perform(refuse, "train", "{}", 0, {}, sink=told.append)
    assert again.outputs == first.outputs
    assert [event.state for event in told] == ["started", "finished", "reused"]
    for settings, seed, inputs in (
        ('{"steps": 2}', 0, {}),
        ("{}", 1, {}),
        ("{}", 0, {"model": str(tmp_path)}),
    ):
        other = perform(writes("other"), "train", settings, seed, inputs)
        assert other.outputs["output"] != first.outputs["output"]
    assert first.outputs["output"].read_text() == "one"


def test_what_must_be_done_again_is():
    perform(writes("one"), "deploy", "{}", 0, {})
    again = perform(writes("two"), "deploy", "{}", 0, {}, again=True)
    assert again.outputs["output"].read_text() == "two"


def test_outputs_are_published_as_links_that_keep_their_identity(tmp_path: Path):
    """The next step must see the same input, whatever Kubeflow calls it this time."""
    done = perform(writes("one"), "train", "{}", 0, {})
    for attempt in ("first", "second"):
        metadata = done.publish(output=str(tmp_path / attempt / "output"))
        assert metadata["step"] == "train"
    perform(writes("a"), "use", "{}", 0, {"model": str(tmp_path / "first" / "output")})
    perform(refuse, "use", "{}", 0, {"model": str(tmp_path / "second" / "output")})


def test_where_work_folders_go_with_the_pod_outputs_are_copied(tmp_path: Path, monkeypatch):
    done = perform(writes("one"), "train", "{}", 0, {})
    monkeypatch.delenv("TOOLWISE_WORK")
    done.publish(output=str(tmp_path / "out"))
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out").read_text() == "one"


def test_a_failure_is_told_recorded_and_raised_and_the_step_can_be_run_again():
    told: list[Event] = []

    def fail(step: Step) -> dict[str, Path]:
        raise InputError("row 7 is not a picture")

    with pytest.raises(InputError, match="row 7"):
        perform(fail, "curate", "{}", 0, {}, sink=told.append)
    assert (told[-1].state, told[-1].note) == ("failed", "row 7 is not a picture")
    runs = mlflow.search_runs(experiment_names=["steps"], output_format="list")
    assert [run.info.status for run in runs if run.info.run_name == "curate"] == ["FAILED"]
    perform(writes("one"), "curate", "{}", 0, {})


def test_steps_of_one_run_log_under_one_parent_run():
    perform(writes("one"), "train", '{"steps": 2}', 5, {})
    perform(writes("one"), "evaluate sft", "{}", 5, {})
    runs = mlflow.search_runs(experiment_names=["steps"], output_format="list")
    by_name = {run.info.run_name: run for run in runs}
    assert set(by_name) == {"a run", "train", "evaluate sft"}
    parent = by_name["a run"].info.run_id
    assert {by_name[n].data.tags["mlflow.parentRunId"] for n in ("train", "evaluate sft")} == {
        parent
    }
    assert by_name["train"].data.params == {"seed": "5", "steps": "2"}
    assert by_name["train"].data.metrics == {"loss": 0.5}


def test_a_killed_step_goes_on_in_the_same_folder():
    def attempt() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ONCE_KILLED], capture_output=True, text=True, env=os.environ
        )

    assert attempt().returncode == -signal.SIGKILL
    second = attempt()
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip().splitlines()[-1] == "half and whole"


def test_two_processes_never_work_in_one_folder():
    def second(step: Step) -> dict[str, Path]:
        with pytest.raises(InputError, match="train is already running in"):
            perform(refuse, "train", "{}", 0, {})
        return {}

    perform(second, "train", "{}", 0, {})


@pytest.mark.parametrize(
    ("said", "message", "status", "reason"),
    [
        ("SUCCEEDED", None, "FINISHED", None),
        ("COMPLETE", None, "FINISHED", None),
        ("FAILED", None, "FAILED", "a step failed"),
        ("FAILED", "no GPU", "FAILED", "no GPU"),
        ("CANCELLED", None, "KILLED", "cancelled"),
        ("CANCELED", None, "KILLED", "cancelled"),
        ("RUNNING", None, "FAILED", "Kubeflow says RUNNING, and not how it ended"),
    ],
)
def test_the_last_step_closes_the_run_as_kubeflow_says_it_ended(
    said: str, message: str | None, status: str, reason: str | None
):
    perform(writes("one"), "train", "{}", 0, {})
    assert closed(said, message) == (status, reason)


@pytest.mark.parametrize("said", ["FAILED", "RUNNING", ""])
def test_where_kubeflow_does_not_say_why_a_run_failed_its_steps_do(said: str):
    for name, work in (("train", fails), ("report", writes("one")), ("train", writes("two"))):
        with suppress(InputError):
            perform(work, name, "{}", 0, {})
    with pytest.raises(InputError):
        perform(fails, "evaluate hdpo", "{}", 0, {})
    assert closed(said) == ("FAILED", "evaluate hdpo: InputError: the disk is full")


def test_a_variant_that_failed_is_not_hidden_by_another_ones_step_of_the_same_name():
    def train(work: Callable[[Step], dict[str, Path]], variant: str) -> None:
        with suppress(InputError):
            perform(work, "train-hdpo", f'{{"variant": "{variant}"}}', 0, {})

    train(fails, "grpo")
    train(writes("one"), "hdpo")
    assert closed("RUNNING", last="") == ("FAILED", "train-hdpo: InputError: the disk is full")
    train(writes("two"), "grpo")
    assert closed("RUNNING", last="") == ("FINISHED", None)


def test_a_run_of_which_kubeflow_does_not_say_how_it_ended_is_finished_by_its_last_step():
    perform(writes("one"), "train", "{}", 0, {})
    perform(writes("two"), "report", "{}", 0, {})
    assert closed("RUNNING") == ("FINISHED", None)
    assert closed("RUNNING", last="") == ("FINISHED", None)
    assert closed("FAILED") == ("FAILED", "a step failed")


def fails(step: Step) -> dict[str, Path]:
    raise InputError("the disk is full")


def closed(said: str, message: str | None = None, last: str = "report") -> tuple[str, str | None]:
    """State and reason of the pipeline's MLflow run, after its last step was told this."""
    status = dsl.PipelineTaskFinalStatus(said, "job", "run", None, message)
    vars(finish)["python_func"](status, last)
    found = mlflow.search_runs(experiment_names=["steps"], output_format="list")
    [run] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return run.info.status, run.data.tags.get(FAILURE_TAG)
