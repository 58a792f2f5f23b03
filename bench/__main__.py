"""`python -m bench [part …]`: measure, print a table, write `bench/results/<part>.json`.

`gpu` is measured only where it is named: it needs a GPU.
"""

from __future__ import annotations

import importlib
import sys
import time

from rich.console import Console

from bench.recording import record, show
from toolwise.errors import ToolwiseError

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
ON_REQUEST = ("gpu",)


def main(parts: list[str]) -> None:
    """Run the named parts, or all that need no GPU."""
    every = (*PARTS, *ON_REQUEST)
    unknown = sorted(set(parts) - set(every))
    if unknown:
        sys.exit(f"no part named {', '.join(unknown)}; there are: {', '.join(every)}")
    console = Console()
    for part in parts or PARTS:
        if part in ON_REQUEST:
            importlib.import_module(f"bench.{part}").main([])
            continue
        started = time.perf_counter()
        with console.status(f"measuring {part}"):
            try:
                figures = importlib.import_module(f"bench.{part}").measure()
            except ToolwiseError as error:
                sys.exit(f"{part}: {error}")
        show(part, figures, console)
        record(part, figures, time.perf_counter() - started)


main(sys.argv[1:])
