"""How many items to measure: how often the gate promotes a model of which the truth is known.

Worked out, not drawn: of n items the number answered with a call is binomial, and the gate accepts
up to (or from) a certain number. `docs/gate.md` has the tables and the plot.
"""

from __future__ import annotations

from bisect import bisect_left

from scipy.stats import binom

from toolwise.promotion.gate import at_least, at_most
from toolwise.promotion.policy import GatePolicy
from toolwise.statistics import paired_bootstrap, wilson_interval

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
    before = [0.0] * gained + [1.0] * (items - gained)
    after = [1.0] * (items - lost) + [0.0] * lost
    pair = paired_bootstrap(
        dict(zip(map(str, range(items)), after, strict=True)),
        dict(zip(map(str, range(items)), before, strict=True)),
        confidence=policy.confidence,
    )
    return items >= policy.min_items and at_most(0.0 - pair.lower_bound, policy.accuracy_drop_max)


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


def passes_accuracy(policy: GatePolicy, changed: float, items: int) -> float:
    """Probability that it accepts a model that is exactly as accurate as the one before.

    Args:
        policy: the thresholds.
        changed: share of the answers that differ in being right, half of them each way.
        items: how many are measured.
    """
    one_way = changed / 2
    few, many = binom.ppf([_NEGLIGIBLE, 1 - _NEGLIGIBLE], items, one_way).astype(int)
    needed = bisect_left(
        range(items - few + 1),
        True,
        key=lambda gained: accepts_accuracy(policy, gained, few, items),
    )
    passed = 0.0
    for lost in range(few, many + 1):
        # The more is lost, the more has to be gained: the search goes on where it was.
        while needed <= items - lost and not accepts_accuracy(policy, needed, lost, items):
            needed += 1
        enough = binom.sf(needed - 1, items - lost, one_way / (1 - one_way))
        passed += binom.pmf(lost, items, one_way) * enough
    return float(passed)
