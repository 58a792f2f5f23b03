"""An evaluation answered benchmark by benchmark is the one that is answered in one go."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from adding_engine import AddingBatch, AddingEngine

from toolwise.data import Message, Task
from toolwise.data.parquet import write_tasks
from toolwise.errors import InputError
from toolwise.evaluation.runner import EvaluationSettings, answer_source, evaluate, gather

SETTINGS = EvaluationSettings(samples=2, counterfactual_samples=3, batch_size=2)
SOURCES = ("tens", "ones")


class GuessingEngine(AddingEngine):
    """Never calls a tool; its guesses at large sums depend on the batch's seed and their place."""

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> AddingBatch:
        return AddingBatch(self, [list(c) for c in conversations], tools=False)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Items of two benchmarks in turn, of two abilities each."""
    path = tmp_path / "benchmark.parquet"
    tasks = [
        Task(
            id=f"{source}-{n}",
            source=source,
            ability=("even", "odd")[n % 2],
            question=f"{n}+{plus}?",
            answer=(str(n + plus),),
        )
        for n in range(5)
        for source, plus in (("tens", 10), ("ones", 1))
    ]
    write_tasks(path, tasks)
    return path


def shard(folder: Path, benchmark: Path, source: str, seed: int = 3) -> Path:
    out = folder / f"{source}-{seed}.jsonl"
    engine = partial(GuessingEngine, folder / "log")
    answer_source(engine, benchmark, None, out, SETTINGS, seed, source=source)
    return out


def test_the_answers_of_each_benchmark_make_the_same_files_byte_for_byte(
    benchmark: Path, tmp_path: Path
):
    whole, made = tmp_path / "whole", tmp_path / "made"
    evaluate(partial(GuessingEngine, tmp_path / "log"), benchmark, None, whole, SETTINGS, 3)
    gather([shard(tmp_path, benchmark, name) for name in SOURCES], benchmark, made, SETTINGS, 3)
    names = sorted(path.name for path in whole.iterdir())
    assert names == ["metrics.json", "samples.jsonl", "scores.jsonl"]
    for name in names:
        assert (made / name).read_bytes() == (whole / name).read_bytes(), name
    metrics = json.loads((made / "metrics.json").read_text())
    assert metrics["sources"] == {"tens": 5, "ones": 5}
    # Guessed: were the seeds not the same, the files would differ.
    assert 0 < metrics["sampled"]["overall"]["accuracy"]["value"] < 1

    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    one = shard(tmp_path, benchmark, "ones")
    with pytest.raises(InputError, match="answers to the items of tens are missing"):
        gather([one], benchmark, tmp_path / "half", SETTINGS, 3)
    with pytest.raises(InputError, match="another evaluation"):
        gather([one], benchmark, tmp_path / "half", SETTINGS, 4)
    other = SETTINGS.model_copy(update={"max_turns": 2})
    with pytest.raises(InputError, match="another evaluation"):
        gather([one], benchmark, tmp_path / "half", other, 3)
    assert not (tmp_path / "half").exists()


def test_a_benchmark_nobody_asked_for_is_refused(benchmark: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no item is from 'hundreds'"):
        shard(tmp_path, benchmark, "hundreds")
    (tmp_path / "garbage").write_text("<html>")
    with pytest.raises(InputError, match="garbage: not the answers of an evaluation"):
        gather([tmp_path / "garbage"], benchmark, tmp_path / "out", SETTINGS)
