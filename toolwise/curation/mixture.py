"""How many prompts of each ability make the largest set that has the shares asked for."""

from __future__ import annotations

from collections.abc import Mapping

METIS = {"perception": 0.45, "search": 0.36, "math": 0.19}
"""Shares of the paper's prompts for reinforcement learning (arXiv 2604.08545)."""


def largest_mixture(available: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    """The largest numbers, none above what is available, that stand in the ratio of the shares.

    An ability of which nothing is available is left out; the others keep their ratio.

    Args:
        available: prompts there are, by ability.
        shares: weights by ability; abilities without one get nothing.
    """
    sizes = [number / shares[a] for a, number in available.items() if number and a in shares]
    size = min(sizes, default=0.0)
    # What is exact in theory may be a hair below in floating point.
    return {a: min(n, int(shares.get(a, 0.0) * size + 1e-6)) for a, n in available.items()}


def targets(
    available: Mapping[str, int], shares: Mapping[str, float] | None, each: int | None
) -> dict[str, int]:
    """How many prompts of each ability make the result.

    Args:
        available: prompts there are, or may be, by ability.
        shares: of the result; see `largest_mixture`.
        each: prompts of each ability, where there are no shares; by default all there are.
    """
    if shares:
        return largest_mixture(available, shares)
    return {ability: each or number for ability, number in available.items()}
