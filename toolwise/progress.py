"""How long-running library functions report: two optional callbacks, no framework."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""`(done, total, note)`, called often; total 0 while unknown."""

Log = Callable[[dict[str, float], int], None]
"""`(metrics, step)`, called once per logged training step."""
