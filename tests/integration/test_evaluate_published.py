"""Published benchmarks, from the rows shipped in their schema, against a model behind a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from scripted_server import ScriptedServer
from typer.testing import CliRunner, Result

from toolwise.agent.openai_engine import ServedModel
from toolwise.cli import app
from toolwise.errors import BackendError
from toolwise.evaluation.benchmarks import benchmark_names, make_benchmark, published
from toolwise.evaluation.metrics import read_scores
from toolwise.evaluation.runner import EvaluationSettings, evaluate
from toolwise.judge.endpoint import EndpointSettings

ROWS = Path(__file__).parents[1] / "data" / "benchmarks"
SCORE_ONLY = EvaluationSettings(samples=0, counterfactual_samples=0)


def rows_of(name: str) -> str:
    [path] = ROWS.glob(f"{name}.*")
    return str(path)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(script="Both look red to me. The answer is (A).") as running:
        yield running


@pytest.mark.parametrize("name", [name for name in benchmark_names() if published(name)])
def test_every_published_benchmark_is_measured_end_to_end(
    name: str, server: ScriptedServer, tmp_path: Path
):
    benchmark = make_benchmark(name, tmp_path / "items", source=rows_of(name))
    out = tmp_path / "evaluation"
    evaluate(ServedModel(base_url=server.url, model="m"), benchmark.items, None, out, SCORE_ONLY)
    own = json.loads((out / "metrics.json").read_text())["published"]
    assert own["name"] == name
    assert 0 <= own["figures"]["score"] <= 1
    assert sum(own["scored_by"].values()) == len(read_scores(out / "scores.jsonl"))


def test_an_answer_in_prose_is_scored_by_the_benchmarks_own_rule(
    server: ScriptedServer, tmp_path: Path
):
    benchmark = make_benchmark("vstar", tmp_path / "items", source=rows_of("vstar"))
    out = tmp_path / "evaluation"
    evaluate(ServedModel(base_url=server.url, model="m"), benchmark.items, None, out, SCORE_ONLY)
    # The right options of the three rows are B, A, A; the model always answers (A).
    assert [row.correct for row in read_scores(out / "scores.jsonl")] == [False, True, True]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["published"]["figures"] == {
        "score": pytest.approx(2 / 3),
        "items": 3,
        "category/direct_attributes": 0.5,
        "category/relative_position": 1.0,
    }
    assert metrics["published"]["scored_by"] == {"rule": 3}
    assert metrics["greedy"]["overall"]["accuracy"]["value"] == pytest.approx(2 / 3)


def test_the_judge_is_asked_where_rules_find_nothing_and_never_twice_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("toolwise.retry.FIRST_WAIT", 0.01)
    monkeypatch.setattr("toolwise.retry.ATTEMPTS", 1)
    benchmark = make_benchmark("vstar", tmp_path / "items", source=rows_of("vstar"))
    out = tmp_path / "evaluation"
    with ScriptedServer(script="I would rather not say.") as model, ScriptedServer() as judge:
        judge.script = "!status 500"
        served = ServedModel(base_url=model.url, model="m")
        judged = SCORE_ONLY.model_copy(
            update={"judge": EndpointSettings(base_url=judge.url, model="j")}
        )
        with pytest.raises(BackendError, match=f"judge j at {judge.url}"):
            evaluate(served, benchmark.items, None, out, judged)
        assert not out.exists()
        judge.script = "A"
        evaluate(served, benchmark.items, None, out, judged)
    assert [row.correct for row in read_scores(out / "scores.jsonl")] == [False, True, True]
    assert {row.scored_by for row in read_scores(out / "scores.jsonl")} == {"judge"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation", "items"]


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path / "steps"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")


def toolwise(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


@pytest.mark.usefixtures("tracked")
def test_the_command_measures_a_named_benchmark_and_puts_it_in_the_papers_table(
    server: ScriptedServer, tmp_path: Path
):
    out, table = tmp_path / "vstar", tmp_path / "table.md"
    command = ["evaluate", "--benchmark", "vstar", "--source", rows_of("vstar")]
    command += ["--base-url", server.url, "--model", "org/mine", "--out", str(out)]
    result = toolwise(*command, "--score-only", "--concurrency", "2")
    assert result.exit_code == 0, result.output
    assert "66.7 [20.8, 93.9]" in result.output
    assert "HR4K" not in result.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["settings"]["max_tokens"] == 4096

    result = toolwise("paper-table", str(out), "--out", str(table))
    assert result.exit_code == 0, result.output
    assert (
        "| org/mine | 66.7 [20.8, 93.9] | – | – | – | – | – | – | – | measured with Toolwise |"
        in table.read_text()
    )


def test_what_does_not_go_together_is_refused(tmp_path: Path):
    out = ("--out", str(tmp_path / "out"))
    tasks = tmp_path / "tasks.parquet"
    tasks.touch()
    served = ("--model", "m", "--base-url", "http://x/v1", "--benchmark")
    for arguments, complaint in (
        (("--model", "m", "--base-url", "ftp://x", "--benchmark", "vstar"), "base_url"),
        (("--model", "m", "--benchmark", "vstar"), "m does not exist"),
        ((*served, str(tasks), "--source", "y"), "--source is for a benchmark by name"),
        ((*served, "vstar", "--judge-url", "http://x/v1"), "go together"),
    ):
        result = toolwise("evaluate", *arguments, *out)
        assert result.exit_code == 1
        assert complaint in result.output
