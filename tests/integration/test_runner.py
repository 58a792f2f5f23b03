"""Evaluation with a scripted model, real worker processes and the real python sandbox."""

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from adding_engine import AddingEngine, BuggyEngine, DyingEngine, UnreachableEngine
from PIL import Image

from toolwise.data import Task
from toolwise.data.parquet import write_tasks
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import RolloutScore, read_scores, summarise
from toolwise.evaluation.runner import EvaluationSettings, evaluate, plan
from toolwise.storage import content_digest
from toolwise.tools.python import PYTHON_SCHEMA

SETTINGS = EvaluationSettings(samples=2, counterfactual_samples=3, batch_size=8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, format="PNG")
    return buffer.getvalue()


TASKS = [
    Task(
        id=f"{ability}-{i}",
        source="sums",
        ability=ability,
        question=f"{a}+{b}?",
        answer=(str(a + b),),
        images=(png(),) if ability == "large" else (),
    )
    for ability, sums in {"small": [(1, 2), (3, 4), (5, 5)], "large": [(20, 3), (347, 586)]}.items()
    for i, (a, b) in enumerate(sums)
]


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "benchmark.parquet"
    write_tasks(path, TASKS)
    return path


def batches_asked(log: Path) -> list[list[Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def untimed(path: Path) -> list[RolloutScore]:
    return [replace(row, seconds=0, tool_seconds=0) for row in read_scores(path / "scores.jsonl")]


def test_a_benchmark_is_answered_greedily_sampled_and_without_tools(
    benchmark: Path, tmp_path: Path
):
    log, out, told = tmp_path / "log", tmp_path / "stage", []
    evaluate(
        partial(AddingEngine, log),
        benchmark,
        None,
        out,
        SETTINGS,
        1,
        progress=lambda *p: told.append(p),
    )
    scores = read_scores(out / "scores.jsonl")
    assert Counter(row.mode for row in scores) == {"greedy": 5, "sampled": 10, "tools_off": 15}
    assert {(row.task_id, row.mode, row.sample) for row in scores} == {
        (task.id, mode, sample)
        for task in TASKS
        for mode, count in (("greedy", 1), ("sampled", 2), ("tools_off", 3))
        for sample in range(count)
    }
    large = next(row for row in scores if row.task_id == "large-1" and row.mode == "greedy")
    assert (large.answer, large.correct, large.tool_calls, large.tool_errors) == ("933", True, 1, 0)
    assert large.tool_seconds > 0
    assert large.seconds == pytest.approx(1.0 + large.tool_seconds)

    asked = batches_asked(log)
    assert sorted(a[:3] for a in asked) == sorted(
        [[5, True, 0.0], [8, True, 1.0], [2, True, 1.0], [8, False, 0.7], [7, False, 0.7]]
    )
    assert len({a[3] for a in asked}) == 5
    assert {a[4] for a in asked} == {"1"}
    assert told[0] == (0, 30, "starting")
    assert told[-1] == (30, 30, "tools off")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.parquet", "log", "stage"]


def test_metrics_and_samples_say_what_the_scores_say(benchmark: Path, tmp_path: Path):
    out = tmp_path / "stage"
    evaluate(partial(AddingEngine, tmp_path / "log"), benchmark, None, out, SETTINGS)
    scores = read_scores(out / "scores.jsonl")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["greedy"] == summarise(scores, "greedy")
    assert metrics["sampled"] == summarise(scores, "sampled")
    assert metrics["greedy"]["large"]["necessary_call_rate"]["value"] == 1.0
    assert metrics["items"] == 5
    assert metrics["solvable"] in (2, 3)
    assert metrics["benchmark"] == content_digest(benchmark)
    assert metrics["settings"] == SETTINGS.model_dump()
    assert set(metrics["versions"]) == {"toolwise", "torch", "transformers"}

    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [s["task_id"] for s in samples] == [f"large-{i}" for i in range(2)] + [
        f"small-{i}" for i in range(3)
    ]
    calling = samples[1]
    assert [m["role"] for m in calling["messages"]] == ["user", "assistant", "tool", "assistant"]
    image = calling["messages"][0]["content"][0]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert calling["messages"][2]["content"] == [{"type": "text", "text": "933"}]
    assert [call["name"] for call in calling["calls"]] == ["python"]
    assert [turn["seconds"] for turn in calling["turns"]] == [0.5, 0.5]
    assert calling["accepted"] == ["933"]


def test_the_result_is_the_same_in_two_processes_and_another_with_another_seed(
    benchmark: Path, tmp_path: Path
):
    engine = partial(AddingEngine, tmp_path / "log")
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    evaluate(engine, benchmark, None, one, SETTINGS, 3)
    evaluate(engine, benchmark, None, two, SETTINGS.model_copy(update={"processes": 2}), 3)
    assert untimed(one) == untimed(two)
    evaluate(engine, benchmark, None, other, SETTINGS, 4)
    assert untimed(one) != untimed(other)


def test_a_killed_evaluation_goes_on_where_it_was_with_the_same_result(
    benchmark: Path, tmp_path: Path
):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    evaluate(partial(AddingEngine, tmp_path / "other"), benchmark, None, whole, SETTINGS, 5)
    script = f"""
import os, signal
from functools import partial
from pathlib import Path
from adding_engine import AddingEngine
from toolwise.evaluation.runner import EvaluationSettings, evaluate

def die_after_two_batches(done, total, note):
    if done >= 13:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(
    partial(AddingEngine, Path({str(log)!r})), {str(benchmark)!r}, None, Path({str(killed)!r}),
    EvaluationSettings.model_validate_json({SETTINGS.model_dump_json()!r}), 5,
    progress=die_after_two_batches,
)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment)
    assert ended.returncode == -signal.SIGKILL
    assert not killed.exists()
    work = tmp_path / ".killed.work.jsonl"
    assert len(work.read_text().splitlines()) == 3
    with work.open("a") as file:
        file.write('{"number": 2, "scores": [{"task_')

    log.unlink()
    told: list[int] = []
    evaluate(
        partial(AddingEngine, log),
        benchmark,
        None,
        killed,
        SETTINGS,
        5,
        progress=lambda done, total, note: told.append(done),
    )
    assert told[0] == 13
    assert sorted(a[:2] for a in batches_asked(log)) == [[2, True], [7, False], [8, False]]
    assert untimed(killed) == untimed(whole)
    assert not work.exists()


def test_work_left_by_another_evaluation_is_not_used(benchmark: Path, tmp_path: Path):
    out, log = tmp_path / "stage", tmp_path / "log"
    with pytest.raises(RuntimeError, match="stop"):
        evaluate(
            partial(AddingEngine, log), benchmark, None, out, SETTINGS, 5, progress=stop_at_first
        )
    log.unlink()
    evaluate(partial(AddingEngine, log), benchmark, None, out, SETTINGS, 6)
    assert len(batches_asked(log)) == 5


def stop_at_first(done: int, total: int, note: str) -> None:
    if done:
        raise RuntimeError("stop")


@pytest.mark.parametrize(
    ("engine", "error", "message"),
    [
        (UnreachableEngine, BackendError, "model server at http://model:8000"),
        (DyingEngine, BackendError, "worker died"),
        (BuggyEngine, RuntimeError, r"(?s)Traceback.*KeyError: 'pixel_values'"),
    ],
)
def test_a_fault_of_the_backend_stops_the_evaluation_and_scores_nothing(
    benchmark: Path, tmp_path: Path, engine: type, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        evaluate(partial(engine, tmp_path / "log"), benchmark, None, tmp_path / "stage", SETTINGS)
    assert not (tmp_path / "stage").exists()


def test_a_benchmark_with_an_id_twice_or_no_items_is_refused(tmp_path: Path):
    path = tmp_path / "benchmark.parquet"
    engine = partial(AddingEngine, tmp_path / "log")
    write_tasks(path, [TASKS[0], TASKS[0]])
    with pytest.raises(InputError, match=r"benchmark.parquet: the id 'small-0' stands for two"):
        evaluate(engine, path, None, tmp_path / "stage", SETTINGS)
    with pytest.raises(InputError, match=r"absent.parquet does not exist"):
        evaluate(engine, tmp_path / "absent.parquet", None, tmp_path / "stage", SETTINGS)


def test_batches_hold_every_answer_once_with_seeds_of_their_own():
    batches = plan(TASKS, SETTINGS, 0)
    answers = Counter((b.mode, item, sample) for b in batches for item, sample in b.answers)
    assert set(answers.values()) == {1}
    assert len(answers) == 30
    assert all(len(b.answers) <= SETTINGS.batch_size for b in batches)
    assert len({b.seed for b in batches} | {b.seed for b in plan(TASKS, SETTINGS, 1)}) == 10


def test_a_checkpoint_gives_the_same_answers_in_one_process_and_in_two(
    benchmark: Path, tmp_path: Path
):
    from toolwise.synthetic.model import build_model, build_processor

    processor = build_processor([PYTHON_SCHEMA])
    build_model(processor.tokenizer).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for processes in (1, 2):
        settings = SETTINGS.model_copy(update={"processes": processes, "max_tokens": 12})
        evaluate(tmp_path / "model", benchmark, None, tmp_path / str(processes), settings)
    assert untimed(tmp_path / "1") == untimed(tmp_path / "2")
    assert sum(row.completion_tokens for row in untimed(tmp_path / "1")) > 30
