"""A curation killed in the middle of each of its filters ends as one that was left alone."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from judge_server import FOR_SHOW, GOOD, JudgeServer, Reply, text_of

from toolwise.data import Trajectory
from toolwise.data.parquet import iterate_trajectories, write_trajectories
from toolwise.synthetic.environment import SignboardSettings, write_signboard

SCRIPT = Path(__file__).parent / "killed_sft_curation.py"
CONCURRENCY = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signboard trajectories, every tenth of which also prints the time."""
    folder = tmp_path_factory.mktemp("signboard") / "data"
    write_signboard(
        folder,
        3,
        SignboardSettings(trajectories=240, rl_tasks=3, benchmark_items=3, corpus_distractors=20),
    )
    raw = iterate_trajectories(folder / "raw_trajectories.parquet")
    rows = (on_the_clock(row) if number % 10 == 0 else row for number, row in enumerate(raw))
    write_trajectories(folder / "trajectories.parquet", list(rows))
    return folder


def on_the_clock(row: Trajectory) -> Trajectory:
    calls = [call for message in row.messages for call in message.get("tool_calls", ())]
    if row.task.metadata.get("flaw") or not calls or calls[0]["function"]["name"] != "python":
        return row
    call = calls[0]["function"]
    call["arguments"] = {
        "code": f"import time\nprint(time.time())\n{call['arguments']['code']}",
    }
    return replace(row, task=replace(row.task, metadata={**row.task.metadata, "clock": True}))


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    """Finds what it finds in the text, whenever it is asked."""

    def verdict(body: dict[str, Any], before: int) -> Reply:
        digest = hashlib.sha256(text_of(body).encode()).digest()
        return 200, FOR_SHOW if digest[0] % 4 == 0 else GOOD

    server = JudgeServer(verdict)
    yield server
    server.stop()


def start(data: Path, out: Path, judge: JudgeServer, cache: Path) -> subprocess.Popen[str]:
    inputs = [data / "trajectories.parquet", data / "corpus.jsonl", out]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, inputs), judge.settings().base_url],
        env={**os.environ, "TOOLWISE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    )


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return (line.split()[0] for line in process.stdout)


def run_to_the_end(data: Path, out: Path, judge: JudgeServer, cache: Path) -> list[str]:
    with start(data, out, judge, cache) as process:
        done = list(lines_of(process))
    assert process.returncode == 0
    return done


def test_a_killed_curation_ends_like_one_left_alone_and_does_nothing_twice(
    data: Path, judge: JudgeServer, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    batches = run_to_the_end(data, whole, judge, tmp_path / "cache of whole")
    asked = len(judge.requests)
    judge.requests.clear()

    # In the middle: one batch is decided and the next under way.
    for filter_name in ("re-execution", "necessity"):
        with start(data, resumed, judge, tmp_path / "cache") as process:
            assert filter_name in lines_of(process)
            process.kill()
        assert process.returncode < 0
        assert not resumed.exists()

    answer = judge.answer
    with start(data, resumed, judge, tmp_path / "cache") as process:

        def kill_at_twenty(body: dict[str, Any], before: int) -> Reply:
            if len(judge.requests) == 20:
                process.kill()
            return answer(body, before)

        judge.answer = kill_at_twenty
        done = list(lines_of(process))
    assert process.returncode < 0
    assert "re-execution" not in done
    assert 0 < done.count("necessity") < batches.count("necessity")
    assert not resumed.exists()

    judge.answer = answer
    run_to_the_end(data, resumed, judge, tmp_path / "cache")
    # Asked twice is what was under way, or answered and not yet on the disk.
    assert asked <= len(judge.requests) <= asked + 2 * CONCURRENCY

    assert {p.name for p in resumed.iterdir()} == {p.name for p in whole.iterdir()}
    for name in ("curated", "rejected", "aside"):
        assert rows_of(resumed, name) == rows_of(whole, name)
        assert len(rows_of(whole, name)) > 5
    reasons = {row["reason"].partition(":")[0] for row in rows_of(whole, "rejected")}
    assert reasons >= {"re-execution", "necessity", "strategic-use"}


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()
