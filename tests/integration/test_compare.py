"""`toolwise compare`: what pipeline runs have left in MLflow, in a table and a picture."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from toolwise import tracking
from toolwise.errors import InputError
from toolwise.evaluation.metrics import RolloutScore, summarise, write_scores
from toolwise.report.comparison import Compared, comparison_plot, print_comparison
from toolwise.tracking import PipelineRun
from toolwise.tracking.evaluations import read_evaluations


def scores(calling: int, items: int = 100) -> list[RolloutScore]:
    """The first `calling` items get a call; the odd ones need one."""
    return [
        RolloutScore(f"{i}", "math", mode, 0, right, calls, 0, 9, 0.5, 0.0, "7")
        for i in range(items)
        for mode, right, calls in (("greedy", True, i < calling), ("tools_off", i % 2 == 0, 0))
    ]


def metrics(calling: int, benchmark: str = "b1") -> dict:
    rows = scores(calling)
    summaries = {mode: summarise(rows, mode) for mode in ("greedy", "sampled")}
    return {**summaries, "benchmark": benchmark, "items": 100, "solvable": 50}


def measure(uri: str, run: PipelineRun, stage: str, calling: int, directory: Path) -> None:
    """Leave an evaluation in MLflow."""
    directory.mkdir()
    write_scores(directory / "scores.jsonl", scores(calling))
    (directory / "metrics.json").write_text(json.dumps(metrics(calling)))
    (directory / "samples.jsonl").write_text("")
    with tracking.step(run, f"evaluate {stage}", uri=uri) as step:
        step.evaluation(stage, directory, directory / "scores.jsonl", directory)


@pytest.fixture(scope="module")
def uri(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two pipeline runs of the profile `smoke`; the second measured its SFT model twice."""
    folder = tmp_path_factory.mktemp("compare")
    for number, (run, stage, calling) in enumerate(
        [("one", "sft", 100), ("one", "hdpo", 50), ("two", "sft", 90), ("two", "sft", 80)]
    ):
        measure(mlflow_uri, PipelineRun("smoke", run), stage, calling, folder / f"{number}")
    return mlflow_uri


def test_runs_are_compared_by_name_each_stage_as_it_was_last_measured(uri: str):
    connection = tracking.Connection(uri)
    found = read_evaluations(connection, "smoke", ["two", "one"])
    assert [(one.run, one.stage) for one in found] == [
        ("two", "sft"),
        ("one", "sft"),
        ("one", "hdpo"),
    ]
    rates = [one.metrics["greedy"]["overall"]["tool_call_rate"]["value"] for one in found]
    assert rates == [0.8, 1.0, 0.5]
    newest_first = [one.run for one in read_evaluations(connection, "smoke")]
    assert newest_first == ["two", "one", "one"]


def test_a_run_without_an_evaluation_yet_is_left_out_unless_it_is_named(
    mlflow_uri: str, tmp_path: Path
):
    connection, profile = tracking.Connection(mlflow_uri), "unfinished"
    with (
        pytest.raises(ZeroDivisionError),
        tracking.step(PipelineRun(profile, "broken"), "evaluate sft", uri=mlflow_uri),
    ):
        raise ZeroDivisionError
    with pytest.raises(InputError, match="'unfinished' has no pipeline run with an evaluation yet"):
        read_evaluations(connection, profile)
    measure(mlflow_uri, PipelineRun(profile, "whole"), "sft", 100, tmp_path / "whole")
    with tracking.step(PipelineRun(profile, "training"), "train-sft", uri=mlflow_uri):
        assert [one.run for one in read_evaluations(connection, profile)] == ["whole"]
    for name in ("broken", "training"):
        with pytest.raises(InputError, match=f"pipeline run '{name}' has no evaluation"):
            read_evaluations(connection, profile, [name])


def test_a_run_that_is_not_there_is_named_with_those_that_are(uri: str):
    connection = tracking.Connection(uri)
    with pytest.raises(InputError, match="no pipeline run 'three'; there are: two, one"):
        read_evaluations(connection, "smoke", ["three"])
    with pytest.raises(InputError, match="no experiment 'nothing'"):
        read_evaluations(connection, "nothing")


def test_the_command_prints_the_table_and_writes_the_plot(uri: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "toolwise.cli", "compare", "one"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ
        | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "smoke", "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    # Half of 100 items: Wilson's interval is 0.5 ± 0.0962.
    assert "HDPO 1.00 [0.96, 1.00] 0.50 [0.40, 0.60] 0.50 [0.37, 0.63] 0.50 [0.37, 0.63]" in lines
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert (tmp_path / "compare.svg").read_text().startswith("<?xml")


def test_runs_on_other_items_are_marked():
    console = Console(width=80, record=True, file=io.StringIO())
    compared = [Compared("one", "sft", metrics(10)), Compared("two", "sft", metrics(10, "b2"))]
    print_comparison(compared, console)
    text = console.export_text()
    assert "two *" in text
    assert "one *" not in text
    assert "* not comparable with the first run: it answered other items (b2, here b1)" in text


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (
            {"settings": {"counterfactual_samples": 1}},
            "it was measured with counterfactual_samples 1, here with 8",
        ),
        (
            {"metric_version": 2},
            "it was measured by version 2 of the metrics, here by version 1 of the metrics",
        ),
    ],
)
def test_runs_that_were_measured_otherwise_are_marked_with_the_reason(other: dict, why: str):
    console = Console(width=80, record=True, file=io.StringIO())
    known = metrics(10) | {"metric_version": 1, "settings": {"counterfactual_samples": 8}}
    print_comparison(
        [Compared("one", "sft", known), Compared("two", "sft", known | other)], console
    )
    text = console.export_text()
    assert "two *" in text
    assert "one *" not in text
    assert f"* not comparable with the first run: {why}" in text


def test_the_plot_names_every_run_and_stage():
    compared = [Compared(run, stage, metrics(10)) for run in ("one", "two") for stage in ("sft",)]
    svg = comparison_plot(compared).decode()
    assert all(f">{text}</text>" in svg for text in ("one", "two", "SFT", "Tool-call rate"))
