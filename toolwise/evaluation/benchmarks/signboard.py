"""The built-in benchmark: signs, sums and facts, half of which need no tool."""

from __future__ import annotations

from pathlib import Path

from toolwise.evaluation.benchmarks import Benchmark
from toolwise.synthetic.environment import SignboardSettings, write_signboard


def make(folder: Path, seed: int) -> Benchmark:
    """The items a run with this seed and the default settings is measured on."""
    write_signboard(folder, seed, SignboardSettings())
    return Benchmark(folder / "benchmark.parquet", folder / "corpus.jsonl")
