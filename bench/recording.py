"""What a part has measured: shown as a table, and kept in `bench/results`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def show(part: str, figures: Mapping[str, float], console: Console) -> None:
    """Print the figures as a table."""
    table = Table("figure", "value", title=part)
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    console.print(table)


def record(part: str, figures: Mapping[str, float], folder: Path = RESULTS, **also: str) -> None:
    """Write `bench/results/<part>.json`: the figures, and the machine they were taken on.

    Args:
        part: of the benchmark.
        figures: by name.
        folder: where the file goes.
        also: what else there is to say of the machine.
    """
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), **also}
    folder.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, "figures": dict(figures)}, indent=2)
    (folder / f"{part}.json").write_text(text + "\n")
