"""Models that answer by a vLLM of their own: `vllm serve` with a stand-in for vLLM itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import vllm_command
from test_runner import TASKS
from toy_training import write_base

from toolwise.agent import Engine, Sampling
from toolwise.agent.vllm_process import VLLMSettings, opened_engine, vllm_process
from toolwise.curation.workbench import Inputs, open_workbench
from toolwise.data import Message
from toolwise.data.parquet import write_tasks
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.metrics import RolloutScore, read_scores
from toolwise.evaluation.runner import EvaluationSettings, evaluate
from toolwise.tools.python import PYTHON_SCHEMA

SETTINGS = VLLMSettings(gpus=2, memory=0.8, context_tokens=2048, start_seconds=120)
QUESTION: list[Message] = [{"role": "user", "content": [{"type": "text", "text": "1+2?"}]}]


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command `vllm`; the file it writes its process id and arguments to."""
    told = tmp_path / "told.json"
    monkeypatch.setenv("PATH", vllm_command.install(tmp_path / "bin"))
    monkeypatch.setenv("VLLM_TOLD", str(told))
    return told


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    return tmp_path / "base"


def running(pid: int) -> bool:
    """Whether there is such a process that is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def written(engine: Engine) -> tuple[int, ...]:
    batch = engine.start([QUESTION], [PYTHON_SCHEMA])
    [turn] = asyncio.run(batch.generate([0], Sampling(max_tokens=8)))
    return turn.token_ids


def test_an_evaluation_by_vllm_scores_what_one_in_process_does(
    vllm: Path, checkpoint: Path, tmp_path: Path
) -> None:
    benchmark = tmp_path / "benchmark.parquet"
    write_tasks(benchmark, TASKS)
    settings = EvaluationSettings(
        samples=0, counterfactual_samples=0, batch_size=3, processes=2, max_tokens=8
    )

    def scores(name: str, settings: EvaluationSettings) -> list[RolloutScore]:
        evaluate(checkpoint, benchmark, None, tmp_path / name, settings)
        rows = read_scores(tmp_path / name / "scores.jsonl")
        return [replace(row, seconds=0, tool_seconds=0) for row in rows]

    here = scores("here", settings)
    assert not vllm.exists()
    assert scores("vllm", settings.model_copy(update={"vllm": SETTINGS})) == here
    pid, told = json.loads(vllm.read_text())
    assert told[:2] == ["serve", str(checkpoint)]
    assert {"--tensor-parallel-size=2", "--gpu-memory-utilization=0.8"} < set(told)
    assert "--max-model-len=2048" in told
    assert not running(pid)


def test_an_evaluation_that_has_all_answers_starts_no_vllm(
    vllm: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark, out = tmp_path / "benchmark.parquet", tmp_path / "out"
    write_tasks(benchmark, TASKS)
    settings = EvaluationSettings(samples=0, counterfactual_samples=0, max_tokens=8, vllm=SETTINGS)
    with monkeypatch.context() as broken:
        broken.setattr("toolwise.evaluation.runner.publish_results", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(checkpoint, benchmark, None, out, settings)
    vllm.unlink()
    evaluate(checkpoint, benchmark, None, out, settings)
    assert not vllm.exists()
    assert len(read_scores(out / "scores.jsonl")) == len(TASKS)


def test_a_curations_model_answers_by_vllm(vllm: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").touch()
    inputs = Inputs(tmp_path / "rows.parquet", checkpoint)
    with (
        opened_engine(checkpoint, None) as here,
        open_workbench(
            inputs, tmp_path / "out", 0, isolation="none", search=None, vllm=SETTINGS, tools=()
        ) as bench,
    ):
        assert bench.engine.name == "base by vLLM"
        assert written(bench.engine) == written(here)
        pid, _ = json.loads(vllm.read_text())
        assert running(pid)
    assert not running(pid)


def test_a_vllm_that_ends_or_hangs_is_told_with_its_last_words(
    vllm: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FATE", "ends")
    words = r"(?s)vLLM ended with status 1 before it answered:.*no memory for the KV cache"
    with pytest.raises(BackendError, match=words), vllm_process(checkpoint, SETTINGS):
        pass
    monkeypatch.setenv("VLLM_FATE", "hangs")
    hurried = SETTINGS.model_copy(update={"start_seconds": 15})
    words = r"(?s)vLLM did not answer within 15 seconds:.*loading weights"
    with pytest.raises(BackendError, match=words), vllm_process(checkpoint, hurried):
        pass
    pid, _ = json.loads(vllm.read_text())
    assert not running(pid)


def test_without_vllm_the_error_says_what_to_do(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="pip install vllm"), vllm_process(checkpoint, SETTINGS):
        pass


def test_a_killed_step_leaves_no_vllm_that_holds_its_gpus(vllm: Path, checkpoint: Path) -> None:
    program = (
        "from pathlib import Path; from toolwise.agent.vllm_process import *\n"
        f"with vllm_process(Path({str(checkpoint)!r}), VLLMSettings()):\n"
        "    print('up', flush=True); import time; time.sleep(600)"
    )
    step = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert step.stdout is not None
    assert step.stdout.readline() == b"up\n"
    pid, _ = json.loads(vllm.read_text())
    os.kill(step.pid, signal.SIGKILL)
    step.wait()
    deadline = time.monotonic() + 60
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(pid)
