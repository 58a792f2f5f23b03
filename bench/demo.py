"""What `make demo` has left to measure with."""

from __future__ import annotations

from pathlib import Path

from toolwise.errors import InputError

STEPS = Path(__file__).parents[1] / "runs" / "demo" / "steps"


def demo_output(step: str, output: str) -> Path:
    """What a step of the newest demo run has made.

    Raises:
        InputError: there is none.
    """
    found = sorted(STEPS.glob(f"{step}/*/{output}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"{STEPS / step} has no {output}: `make demo` first")
    return found[-1]
