"""Benchmarks by name. A benchmark is one module here, with a function `make`.

`make(folder, seed) -> Benchmark` puts its items, and the corpus its searches need, into `folder`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import NamedTuple

from toolwise.errors import InputError


class Benchmark(NamedTuple):
    """What `toolwise.evaluation.runner.evaluate` answers: items, and what it may search."""

    items: Path
    corpus: Path | None


def benchmark_names() -> list[str]:
    """The benchmarks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make_benchmark(name: str, folder: Path, seed: int = 0) -> Benchmark:
    """Put the benchmark `name` into `folder`; raises `InputError` where there is none."""
    if name not in benchmark_names():
        raise InputError(
            f"there is no benchmark {name!r}; there are: {', '.join(benchmark_names())}"
        )
    return importlib.import_module(f"{__name__}.{name}").make(folder, seed)
