"""`python -m bench [part …]`: measure, print a table, write `bench/results/<part>.json`."""

from __future__ import annotations

import importlib
import sys
import time

from rich.console import Console
from rich.table import Table

from bench.results_file import write_figures

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


def main(parts: list[str]) -> None:
    """Run the named parts, or all of them."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        sys.exit(f"no part named {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    console = Console()
    for part in parts or PARTS:
        started = time.perf_counter()
        with console.status(f"measuring {part}"):
            figures = importlib.import_module(f"bench.{part}").measure()
        table = Table("figure", "value", title=part)
        for name, value in figures.items():
            table.add_row(name, f"{value:.3f}")
        console.print(table)
        write_figures(part, figures, time.perf_counter() - started)


main(sys.argv[1:])
