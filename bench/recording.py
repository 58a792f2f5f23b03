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


def record(
    part: str,
    figures: Mapping[str, float],
    seconds: float | None,
    folder: Path = RESULTS,
    **also: str,
) -> None:
    """Write `bench/results/<part>.json`: the figures, what they took, and the machine.

    Args:
        part: of the benchmark.
        figures: by name.
        seconds: that measuring took, less than the work where something was kept from before; None
            where nothing was measured, and what the file says of it stays.
        folder: where the file goes.
        also: what else there is to say of the machine.
    """
    file = folder / f"{part}.json"
    if seconds is None:
        seconds = float(json.loads(file.read_text())["seconds"]) if file.exists() else 0.0
    content = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), **also},
        "seconds": round(seconds, 1),
        "figures": dict(figures),
    }
    folder.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
