"""Evaluation of a model behind a server: a real HTTP server, kills, timeouts and rate limits."""

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_server import ScriptedServer, call

from toolwise.agent.openai_engine import ServedModel
from toolwise.data import Task
from toolwise.data.parquet import write_tasks
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import RolloutScore, read_scores
from toolwise.evaluation.plan import plan_single
from toolwise.evaluation.runner import EvaluationSettings, evaluate

SETTINGS = EvaluationSettings(samples=1, counterfactual_samples=2, isolation="bubblewrap")
ANSWERS = 4
"""Of one item: greedy, sampled, and two with tools off."""


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def tasks(*scripts: str, ability: str = "math") -> list[Task]:
    return [
        Task(f"item-{i}", "scripts", ability, script, ("1",), (png(),))
        for i, script in enumerate(scripts)
    ]


SEEDED = tasks(*["!seed 2"] * 12)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolwise.retry.FIRST_WAIT", 0.01)


def at(server: ScriptedServer) -> ServedModel:
    return ServedModel(base_url=server.url, model="m")


def items(folder: Path, rows: list[Task]) -> Path:
    path = folder / "items.parquet"
    write_tasks(path, rows)
    return path


def with_(**changes: Any) -> EvaluationSettings:
    return SETTINGS.model_copy(update=changes)


def untimed(out: Path) -> list[RolloutScore]:
    return [replace(row, seconds=0, tool_seconds=0) for row in read_scores(out / "scores.jsonl")]


def samples(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        for timed in (row, *row["turns"], *row["calls"]):
            timed.pop("seconds")
        row.pop("tool_seconds")
    return rows


def lines(work: Path) -> int:
    return len(work.read_text().splitlines())


def test_the_result_is_the_same_whatever_the_concurrency(server: ScriptedServer, tmp_path: Path):
    sum_ = f"{call('python', code='print(0 + 1)')}|<answer>1</answer>"
    benchmark = items(tmp_path, [*SEEDED, replace(SEEDED[0], id="sum", question=sum_)])
    for concurrency in (1, 16):
        settings = with_(concurrency=concurrency)
        evaluate(at(server), benchmark, None, tmp_path / str(concurrency), settings, 3)
    one, many = untimed(tmp_path / "1"), untimed(tmp_path / "16")
    assert one == many
    assert samples(tmp_path / "1") == samples(tmp_path / "16")
    assert Counter(row.mode for row in one) == {"greedy": 13, "sampled": 13, "tools_off": 26}
    assert {row.answer for row in one if row.mode == "sampled"} == {"0", "1"}
    [called] = [row for row in one if row.tool_calls and row.mode == "greedy"]
    assert (called.task_id, called.answer, called.correct) == ("sum", "1", True)

    metrics = json.loads((tmp_path / "16" / "metrics.json").read_text())
    assert metrics["model"] == {"base_url": server.url, "model": "m"}
    assert metrics["checkpoint"] == f"m at {server.url}"
    assert metrics["greedy"]["overall"]["tool_call_rate"]["value"] == pytest.approx(1 / 13)

    evaluate(at(server), benchmark, None, tmp_path / "other", SETTINGS, 4)
    assert untimed(tmp_path / "other") != one


def test_a_seed_is_the_items_own_whatever_stands_beside_it():
    def seeds(rows: list[Task]) -> dict[tuple[str, str, int], int]:
        return {
            (rows[b.answers[0][0]].id, b.mode, b.answers[0][1]): b.seed
            for b in plan_single(rows, SETTINGS, 0)
        }

    every, some = seeds(SEEDED), seeds(SEEDED[5:8])
    assert len(set(every.values())) == len(SEEDED) * ANSWERS
    assert some.items() <= every.items()


def test_a_killed_run_goes_on_without_asking_again_and_equals_a_whole_one(
    server: ScriptedServer, tmp_path: Path
):
    benchmark = items(tmp_path, SEEDED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate(at(server), benchmark, None, whole, SETTINGS, 5)
    asked = len(server.requests)
    assert asked == len(SEEDED) * ANSWERS
    script = f"""
import os, signal
from pathlib import Path
from toolwise.agent.openai_engine import ServedModel
from toolwise.evaluation.runner import EvaluationSettings, evaluate

def die_after_ten(done, total, note):
    if done >= 10:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(
    ServedModel(base_url={server.url!r}, model="m"), {str(benchmark)!r}, None,
    Path({str(killed)!r}),
    EvaluationSettings.model_validate_json({with_(concurrency=4).model_dump_json()!r}), 5,
    progress=die_after_ten,
)
"""
    ended = subprocess.run([sys.executable, "-c", script], env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    assert not killed.exists()
    work = tmp_path / ".killed.work.jsonl"
    assert lines(work) == 1 + 10
    with work.open("a") as file:
        file.write('{"number": 2, "scores": [{"task_')

    before = len(server.requests)
    told: list[int] = []
    evaluate(
        at(server),
        benchmark,
        None,
        killed,
        SETTINGS,
        5,
        progress=lambda done, total, note: told.append(done),
    )
    assert told[0] == 10
    assert len(server.requests) - before == asked - 10
    assert untimed(killed) == untimed(whole)
    assert samples(killed) == samples(whole)
    assert not work.exists()


def test_a_server_that_dies_costs_nothing_that_was_answered(tmp_path: Path):
    benchmark, out = items(tmp_path, SEEDED), tmp_path / "out"
    with ScriptedServer() as whole:
        evaluate(at(whole), benchmark, None, tmp_path / "whole", SETTINGS)

    def die(done: int, total: int, note: str) -> None:
        if done == 20:
            first.stop()

    with ScriptedServer() as first:
        port = first.port
        with pytest.raises(BackendError, match=rf"m at {first.url} .*\n.*only the missing ones"):
            evaluate(at(first), benchmark, None, out, with_(concurrency=4), progress=die)
    assert not out.exists()
    kept = lines(tmp_path / ".out.work.jsonl") - 1
    assert kept >= 20

    with ScriptedServer(port=port) as second:
        evaluate(at(second), benchmark, None, out, SETTINGS)
        assert len(second.requests) == len(SEEDED) * ANSWERS - kept
    assert untimed(out) == untimed(tmp_path / "whole")


def test_an_item_that_takes_too_long_is_asked_for_again_and_costs_no_other(tmp_path: Path):
    rows = [*SEEDED, *tasks("!hold")]
    rows[-1] = replace(rows[-1], id="slow", answer=("held",))
    benchmark, out = items(tmp_path, rows), tmp_path / "out"
    settings = with_(timeout=3, counterfactual_samples=1, samples=0)
    with ScriptedServer() as server:
        with pytest.raises(BackendError, match=r"'slow' .*no answer within 3 seconds"):
            evaluate(at(server), benchmark, None, out, settings)
        assert lines(tmp_path / ".out.work.jsonl") == 1 + 2 * len(SEEDED)
        server.let_go.set()
        before = len(server.requests)
        evaluate(at(server), benchmark, None, out, settings.model_copy(update={"timeout": 60}))
        assert len(server.requests) - before == 2
    assert [row.correct for row in untimed(out) if row.task_id == "slow"] == [True, True]


def test_a_lasting_failure_on_one_item_costs_no_other(server: ScriptedServer, tmp_path: Path):
    rows = [*tasks("!status 500"), *(replace(row, id=f"good-{row.id}") for row in SEEDED)]
    settings = with_(samples=0, counterfactual_samples=0)
    with pytest.raises(BackendError, match=r"no answer to item 'item-0' \(greedy\): .*500"):
        evaluate(at(server), items(tmp_path, rows), None, tmp_path / "out", settings)
    assert lines(tmp_path / ".out.work.jsonl") == 1 + len(SEEDED)


def test_eight_failures_in_a_row_end_the_run(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("toolwise.retry.ATTEMPTS", 2)
    benchmark = items(tmp_path, tasks(*["!status 500"] * 40))
    with pytest.raises(BackendError, match=r"'item-0'.*and 7 more"):
        evaluate(at(server), benchmark, None, tmp_path / "out", with_(concurrency=1))
    assert len(server.requests) == 8 * 2


def test_items_the_server_refuses_are_the_askers_to_mend(server: ScriptedServer, tmp_path: Path):
    benchmark = items(tmp_path, [*tasks("!full"), *(replace(r, id=f"g{r.id}") for r in SEEDED)])
    settings = with_(samples=0, counterfactual_samples=0)
    with pytest.raises(InputError, match=r"'item-0' \(greedy\): m at .* maximum context length"):
        evaluate(at(server), benchmark, None, tmp_path / "out", settings)
    assert lines(tmp_path / ".out.work.jsonl") == 1 + len(SEEDED)


def test_a_rate_limit_costs_time_and_no_answer(server: ScriptedServer, tmp_path: Path):
    benchmark = items(tmp_path, tasks(*(f"!later 0.{i}" for i in range(8))))
    evaluate(at(server), benchmark, None, tmp_path / "out", SETTINGS)
    assert {row.answer for row in untimed(tmp_path / "out")} == {"after all"}
    assert len(server.requests) == 8 * ANSWERS + 8


def test_as_many_answers_are_in_flight_as_asked_for_and_no_more(
    server: ScriptedServer, tmp_path: Path
):
    settings = with_(concurrency=3, samples=0, counterfactual_samples=0)
    benchmark = items(tmp_path, tasks(*["!together 3"] * 9))
    evaluate(at(server), benchmark, None, tmp_path / "out", settings)
    assert server.most_at_once == 3


def test_without_counterfactual_answers_what_rests_on_them_is_empty(
    server: ScriptedServer, tmp_path: Path
):
    settings = with_(samples=0, counterfactual_samples=0)
    evaluate(at(server), items(tmp_path, SEEDED), None, tmp_path / "out", settings)
    overall = json.loads((tmp_path / "out" / "metrics.json").read_text())["greedy"]["overall"]
    assert overall["accuracy"]["count"] == 12
    assert overall["redundant_call_rate"] == {
        "value": None,
        "count": 0,
        "low": None,
        "high": None,
    }
