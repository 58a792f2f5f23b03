"""Writes `bench/results/<part>.json`: the figures of a part, and what it took to measure them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def write_figures(part: str, figures: Mapping[str, float], seconds: float | None) -> None:
    """Write the file of a part.

    Args:
        part: its name.
        figures: what was measured.
        seconds: that this took, less than the work where something was kept from before; None
            where nothing was measured, and what the file says of it stays.
    """
    file = RESULTS / f"{part}.json"
    if seconds is None:
        seconds = float(json.loads(file.read_text())["seconds"]) if file.exists() else 0.0
    record = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "seconds": round(seconds, 1),
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
