"""How many items to measure: how often the gate promotes a model of which the truth is known.

Worked out, not drawn: of n items the number answered with a call is binomial, and the gate accepts
up to (or from) a certain number. `docs/gate.md` has the tables and the plot.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from scipy.stats import binom

from toolwise.promotion.gate import MOST_LOST, at_least, at_most
from toolwise.promotion.policy import GatePolicy
from toolwise.statistics import mean_upper_bound, wilson_interval

_NEGLIGIBLE = 1e-6
"""Probability of the outcomes that are left out at either end."""


def accepts_redundant(policy: GatePolicy, calls: int, items: int) -> bool:
    """Whether the gate accepts `calls` answers with a call on `items` solvable without tools."""
    bound = wilson_interval(calls, items, policy.confidence).high
    return items >= policy.min_items and at_most(bound, policy.redundant_call_rate_max)


def accepts_necessary(policy: GatePolicy, calls: int, items: int) -> bool:
    """Whether the gate accepts `calls` answers with a call on `items` that need a tool."""
    bound = wilson_interval(calls, items, policy.confidence).low
    return items >= policy.min_items and at_least(bound, policy.necessary_call_rate_min)


def accepts_accuracy(policy: GatePolicy, gained: int, lost: int, items: int) -> bool:
    """Whether it accepts that of `items` some are right that were wrong, and `lost` the reverse."""
    losses = np.repeat([-1.0, 0.0, 1.0], [gained, items - gained - lost, lost])
    bound = mean_upper_bound(losses, MOST_LOST, policy.confidence)
    return items >= policy.min_items and at_most(bound, policy.accuracy_drop_max)


def passes_redundant(policy: GatePolicy, rate: float, items: int) -> float:
    """Probability that the gate accepts a model with this true redundant call rate.

    Args:
        policy: the thresholds.
        rate: how often the model calls a tool on an item it solves without, 0 … 1.
        items: how many such items are measured, one answer each.
    """
    counts = range(items + 1)
    refused = bisect_left(counts, True, key=lambda n: not accepts_redundant(policy, n, items))
    return float(binom.cdf(refused - 1, items, rate))


def passes_necessary(policy: GatePolicy, rate: float, items: int) -> float:
    """Probability that the gate accepts a model with this true necessary call rate."""
    counts = range(items + 1)
    accepted = bisect_left(counts, True, key=lambda n: accepts_necessary(policy, n, items))
    return float(binom.sf(accepted - 1, items, rate))


def passes_accuracy(policy: GatePolicy, lost: float, gained: float, items: int) -> float:
    """Probability that it accepts a model that answers some items differently than the one before.

    Args:
        policy: the thresholds.
        lost: share of the items it answers wrongly and the one before rightly.
        gained: the reverse; both together are at most 1.
        items: how many are measured, one answer each.
    """
    few, many = binom.ppf([_NEGLIGIBLE, 1 - _NEGLIGIBLE], items, lost).astype(int)
    needed = bisect_left(
        range(items - few + 1), True, key=lambda n: accepts_accuracy(policy, n, few, items)
    )
    passed = 0.0
    for losses in range(few, many + 1):
        rest = items - losses
        # The more is lost, the more has to be gained: the search goes on where it was.
        while needed <= rest and not accepts_accuracy(policy, needed, losses, items):
            needed += 1
        # Of the items that are not lost each is a gain with this probability.
        enough = binom.sf(needed - 1, rest, gained / (1 - lost))
        passed += binom.pmf(losses, items, lost) * enough
    return float(passed)
