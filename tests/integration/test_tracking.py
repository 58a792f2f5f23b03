"""Tracking against a real MLflow store on SQLite, and against endpoints that fail."""

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from pydantic import BaseModel

from toolwise import tracking
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import RolloutScore, flatten, summarise, write_scores
from toolwise.storage import content_digest
from toolwise.tracking import PipelineRun, delivery

PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture(scope="session")
def uri(mlflow_uri: str) -> str:
    return mlflow_uri


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


@pytest.fixture
def parent(request: pytest.FixtureRequest) -> PipelineRun:
    return PipelineRun(request.node.name, "run 1")


class Nested(BaseModel):
    rate: float = 0.5


class Settings(BaseModel):
    samples: int = 2
    inner: Nested = Nested()


def parent_run(client: MlflowClient, parent: PipelineRun) -> Run:
    """The one parent run there is."""
    experiment = client.get_experiment_by_name(parent.experiment)
    assert experiment is not None
    tagged = f"tags.`{tracking.PIPELINE_RUN_TAG}` = '{parent.name}'"
    (run,) = client.search_runs([experiment.experiment_id], tagged)
    return run


def nested_runs(client: MlflowClient, parent: PipelineRun) -> dict[str, Any]:
    info = parent_run(client, parent).info
    found = client.search_runs([info.experiment_id], f"tags.mlflow.parentRunId = '{info.run_id}'")
    return {run.info.run_name or "": run for run in found}


def test_a_step_is_a_nested_run_with_settings_curves_and_the_commit(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    with tracking.step(parent, "train_hdpo", params=Settings(), uri=uri) as run:
        for number in range(1200):
            run.log({"accuracy": number / 1200, "qualifying": 3.0}, number)
    stored = nested_runs(client, parent)["train_hdpo"]
    assert stored.info.run_id == run.run_id
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"samples": "2", "inner.rate": "0.5"}
    curve = client.get_metric_history(run.run_id, "accuracy")
    assert sorted((m.step, m.value) for m in curve) == [(n, n / 1200) for n in range(1200)]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert stored.data.tags["mlflow.source.git.commit"] == head.stdout.strip()


def test_a_failed_step_says_why_keeps_its_metrics_and_passes_the_error_on(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    def curate() -> None:
        with tracking.step(parent, "curate_sft", uri=uri) as run:
            run.log({"kept": 5.0})
            raise InputError("raw.parquet, row 7: no answer")

    with pytest.raises(InputError, match="row 7"):
        curate()
    stored = nested_runs(client, parent)["curate_sft"]
    assert stored.info.status == "FAILED"
    assert stored.data.tags[tracking.FAILURE_TAG] == "InputError: raw.parquet, row 7: no answer"
    assert stored.data.metrics == {"kept": 5.0}


def test_the_parent_run_closes_with_the_state_of_the_pipeline(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    tracking.end_pipeline_run(parent, uri=uri)
    assert parent_run(client, parent).info.status == "FINISHED"
    tracking.end_pipeline_run(parent, failure="train_sft failed", uri=uri)
    run = parent_run(client, parent)
    assert run.info.status == "FAILED"
    assert run.data.tags[tracking.FAILURE_TAG] == "train_sft failed"


def test_a_pipeline_run_started_again_goes_on_in_the_same_parent_run(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    with tracking.step(parent, "train", uri=uri):
        pass
    tracking.end_pipeline_run(parent, failure="killed", uri=uri)
    first = parent_run(client, parent)
    assert first.data.tags[tracking.FAILURE_TAG] == "killed"
    with tracking.step(parent, "train", uri=uri):
        again = parent_run(client, parent)
        assert again.info.run_id == first.info.run_id
        assert again.info.status == "RUNNING"
        assert tracking.FAILURE_TAG not in again.data.tags
    other = PipelineRun(parent.experiment, "run 2")
    with tracking.step(other, "train", uri=uri):
        pass
    assert parent_run(client, other).info.run_id != first.info.run_id


def test_steps_that_begin_at_the_same_moment_are_of_one_parent_run(
    client: MlflowClient, parent: PipelineRun, uri: str, monkeypatch: pytest.MonkeyPatch
):
    """As evaluations in parallel pods where all steps before them were cached."""
    monkeypatch.setattr(delivery, "SETTLING_SECONDS", 2.0)
    none_there = threading.Barrier(3)
    found = delivery.find_experiment

    def found_by_all(*given: Any) -> Any:
        none_there.wait(30)
        return found(*given)

    monkeypatch.setattr(delivery, "find_experiment", found_by_all)

    def opened(_: int) -> str:
        return delivery.pipeline_run_id(MlflowClient(uri), tracking.Connection(uri), parent)

    with ThreadPoolExecutor(3) as pool:
        ids = set(pool.map(opened, range(3)))
    assert ids == {parent_run(client, parent).info.run_id}
    assert opened(0) in ids


def test_a_step_whose_process_was_killed_is_marked_when_it_runs_again(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    script = (
        "import os, signal; from toolwise import tracking\n"
        f"with tracking.step(tracking.{parent!r}, 'train_sft', uri={uri!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    killed = nested_runs(client, parent)["train_sft"].info
    assert killed.status == "RUNNING"
    with tracking.step(parent, "train_sft", uri=uri) as run:
        pass
    assert client.get_run(killed.run_id).info.status == "KILLED"
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_step_that_is_still_running_is_not_marked_by_another_of_its_name(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    with tracking.step(parent, "train_hdpo", uri=uri) as first:
        first.flush()
        with tracking.step(parent, "train_hdpo", uri=uri) as second:
            second.flush()
        running = client.get_run(first.run_id)
        assert running.info.status == "RUNNING"
        assert tracking.FAILURE_TAG not in running.data.tags
    for run in (first, second):
        assert client.get_run(run.run_id).info.status == "FINISHED"


def test_an_attempt_at_other_work_is_not_marked_although_its_spool_is_elsewhere(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    """As of two variants of a training in pods of their own, each with a disk of its own."""
    killed = (
        "import os, shutil, signal; from toolwise import tracking\n"
        f"with tracking.step(tracking.{parent!r}, 'train', attempt='{{}}', uri={uri!r}) as run:\n"
        "    run.flush(); shutil.rmtree(os.environ['TOOLWISE_SPOOL'])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )

    def status(attempt: str) -> list[str]:
        experiment = parent_run(client, parent).info.experiment_id
        tagged = f"tags.`toolwise.attempt` = '{attempt}'"
        return [run.info.status for run in client.search_runs([experiment], tagged)]

    with tempfile.TemporaryDirectory() as folder:
        for attempt in ("w_tool 0.15", "w_tool 0.3"):
            environment = os.environ | {"TOOLWISE_SPOOL": f"{folder}/{attempt}"}
            command = [sys.executable, "-c", killed.format(attempt)]
            assert subprocess.run(command, env=environment).returncode == -9
    with tracking.step(parent, "train", attempt="w_tool 0.3", uri=uri):
        pass
    assert status("w_tool 0.15") == ["RUNNING"]
    assert sorted(status("w_tool 0.3")) == ["FINISHED", "KILLED"]


def test_a_run_that_was_marked_and_finishes_after_all_has_no_failure(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    with tracking.step(parent, "train", uri=uri) as run:
        client.set_tag(run.run_id, tracking.FAILURE_TAG, "the process was killed")
        client.set_terminated(run.run_id, "KILLED")
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert tracking.FAILURE_TAG not in stored.data.tags


def test_processes_that_log_at_once_lose_nothing(
    client: MlflowClient, parent: PipelineRun, uri: str
):
    script = (
        "import sys; from toolwise import tracking\n"
        f"with tracking.step(tracking.{parent!r}, sys.argv[1], uri={uri!r}) as run:\n"
        "    for i in range(10):\n"
        "        run.log({'loss': float(i)}, i); run.flush()"
    )
    started = [subprocess.Popen([sys.executable, "-c", script, f"shard {i}"]) for i in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    runs = nested_runs(client, parent)
    for i in range(2):
        shard = runs[f"shard {i}"]
        assert shard.info.status == "FINISHED"
        assert len(client.get_metric_history(shard.info.run_id, "loss")) == 10


def score(task_id: str, mode: Any, calls: int = 0) -> RolloutScore:
    return RolloutScore(task_id, "math", mode, 0, True, calls, 0, 9, 0.75, 0.25, "934")


SCORES = [score("a", "greedy", 1), score("a", "sampled"), score("a", "tools_off")]

SAMPLE = {
    "task_id": "a",
    "ability": "math",
    "mode": "greedy",
    "correct": True,
    "tool_calls": 1,
    "answer": "934",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PIXEL}},
                {"type": "text", "text": "933+1?"},
            ],
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0",
                    "type": "function",
                    "function": {"name": "python", "arguments": {"code": "print(933+1)"}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": [{"type": "text", "text": "934"}]},
        {"role": "assistant", "content": "<answer>934</answer>"},
    ],
    "turns": [
        {"seconds": 0.25, "prompt_tokens": 20, "completion_tokens": 12},
        {"seconds": 0.25, "prompt_tokens": 40, "completion_tokens": 5},
    ],
    "calls": [
        {
            "name": "python",
            "arguments": {"code": "print(933+1)"},
            "seconds": 0.25,
            "is_error": False,
        }
    ],
}


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    directory = tmp_path / "hdpo"
    directory.mkdir()
    write_scores(directory / "scores.jsonl", SCORES)
    metrics = {mode: summarise(SCORES, mode) for mode in ("greedy", "sampled")}
    (directory / "metrics.json").write_text(json.dumps({**metrics, "benchmark": "abc"}))
    (directory / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    return directory


def test_an_evaluation_is_linked_to_its_model_and_benchmark_and_traced(
    client: MlflowClient, parent: PipelineRun, uri: str, stage: Path, tmp_path: Path
):
    benchmark = tmp_path / "benchmark.parquet"
    benchmark.write_bytes(b"items")
    with tracking.step(parent, "evaluate hdpo", uri=uri) as run:
        model_id = run.evaluation("hdpo", stage, benchmark, tmp_path / "checkpoint")

    stored = client.get_run(run.run_id)
    expected = {
        **flatten(summarise(SCORES, "greedy"), "greedy"),
        **flatten(summarise(SCORES, "sampled"), "sampled"),
    }
    assert expected["greedy/overall/redundant_call_rate"] == 1.0
    assert stored.data.metrics == expected
    (used,) = stored.inputs.dataset_inputs
    assert used.dataset.name == "benchmark.parquet"
    assert used.dataset.digest == content_digest(benchmark)[:32]
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "evaluation")]

    model = client.get_logged_model(model_id)
    assert (model.name, model.status) == ("hdpo", "READY")
    assert {m.key: m.value for m in model.metrics or []} == expected
    assert {m.dataset_digest for m in model.metrics or []} == {used.dataset.digest}

    kept = {file.path for file in client.list_artifacts(run.run_id, "evaluation")}
    assert kept == {
        f"evaluation/{name}" for name in ("scores.jsonl", "metrics.json", "samples.jsonl")
    }

    (trace,) = client.search_traces(locations=[stored.info.experiment_id], run_id=run.run_id)
    root, first, call, second = sorted(
        trace.data.spans, key=lambda s: (s.start_time_ns, s.parent_id or "")
    )
    assert [s.span_type for s in (root, first, call, second)] == [
        "AGENT",
        "CHAT_MODEL",
        "TOOL",
        "CHAT_MODEL",
    ]
    assert {s.parent_id for s in (first, call, second)} == {root.span_id}
    assert call.name == "python"
    assert call.inputs == {"code": "print(933+1)"}
    assert second.outputs["choices"][0]["message"]["content"] == "<answer>934</answer>"
    assert root.outputs == {"answer": "934", "correct": True}
    assert trace.info.execution_duration == pytest.approx(750, abs=1)


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers `failures` requests with 503, then as MLflow would for an unknown experiment."""

    failures = 0
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        broken = self.asked <= self.failures
        body = b"{}" if broken else b'{"experiment": {"experiment_id": "7", "name": "demo"}}'
        self.send_response(503 if broken else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("toolwise.retry.FIRST_WAIT", 0.01)
    monkeypatch.setattr("toolwise.retry.LONGEST_WAIT", 0.02)
    before = mlflow.get_tracking_uri()
    Faulty.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
    mlflow.set_tracking_uri(before)


def test_a_passing_fault_of_the_server_is_survived(faulty: str):
    Faulty.failures = 2
    found = tracking.Connection(faulty).request(lambda c: c.get_experiment_by_name("demo"))
    assert found is not None
    assert found.experiment_id == "7"
    assert Faulty.asked == 3


def test_a_lasting_fault_stops_the_step_with_the_address_and_the_last_error(faulty: str):
    Faulty.failures = 1000
    with pytest.raises(BackendError, match=rf"MLflow at {faulty} failed 5 times.*503"):
        tracking.Connection(faulty).request(lambda c: c.get_experiment_by_name("demo"))
    assert Faulty.asked == 5


def test_an_unwritable_store_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/runs cannot be written to"):
        _ = tracking.Connection(f"sqlite:///{tmp_path}/file/runs/mlflow.db").client
