"""`python -m bench [part …]`: measure, print a table, write `bench/results/<part>.json`."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

PARTS = (
    "sandbox",
    "engine",
    "rollouts",
    "runner",
    "curation",
    "deduplication",
    "hdpo",
    "trainer_cost",
    "collapse_alarm",
    "serve",
)
RESULTS = Path(__file__).parent / "results"


def main(parts: list[str]) -> None:
    """Run the named parts, or all of them."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        sys.exit(f"no part named {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    console = Console()
    RESULTS.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    for part in parts or PARTS:
        with console.status(f"measuring {part}"):
            figures = importlib.import_module(f"bench.{part}").measure()
        table = Table("figure", "value", title=part)
        for name, value in figures.items():
            table.add_row(name, f"{value:.3f}")
        console.print(table)
        record = json.dumps({"machine": machine, "figures": figures}, indent=2)
        (RESULTS / f"{part}.json").write_text(record + "\n")


main(sys.argv[1:])
