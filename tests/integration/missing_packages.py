"""A program that runs as if some packages were not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROLOGUE = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


def run_without(missing: Collection[str], program: str) -> subprocess.CompletedProcess[str]:
    """Run `program` where the modules `missing`, by their first names, cannot be found."""
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE.format(missing=set(missing)) + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
