"""Intervals: Wilson's for shares, the normal one for means, a paired bootstrap for differences.

A decision rests on `mean_upper_bound` and not on the bootstrap: it holds where few items differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from toolwise.errors import InputError


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of `challenger - champion` over the same items.

    Args:
        value: the observed mean difference.
        low, high: two-sided interval at the confidence asked for.
        count: items.
    """

    value: float
    low: float
    high: float
    count: int


def wilson_interval(successes: float, count: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a binomial proportion.

    With p = successes/count and z the normal quantile of (1 + confidence)/2:
    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n). Source: E. B. Wilson, "Probable Inference,
    the Law of Succession, and Statistical Inference", JASA 22 (1927); recommended by Brown, Cai &
    DasGupta, "Interval Estimation for a Binomial Proportion", Statistical Science 16 (2001).

    Args:
        successes: 0 … `count`. May be fractional, as the sum of means of several draws per item:
            such a mean varies at most as much as one draw, so the interval errs on the wide side.
        count: independent units, at least 1.
        confidence: 0 < confidence < 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if count < 1 or not -1e-9 <= successes <= count + 1e-9:
        raise ValueError(f"{successes} successes of {count} is not a proportion")
    z = _quantile((1 + confidence) / 2)
    p = min(max(successes / count, 0.0), 1.0)
    centre = p + z * z / (2 * count)
    margin = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # At p = 0 and p = 1 centre and margin cancel exactly, but for rounding.
    low = 0.0 if p == 0 else max(0.0, (centre - margin) / scale)
    high = 1.0 if p == 1 else min(1.0, (centre + margin) / scale)
    return Interval(low, high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The normal interval of a mean, mean ± z·s/√n with the unbiased s.

    Raises:
        ValueError: fewer than two values; one value says nothing about spread.
    """
    if len(values) < 2:
        raise ValueError("an interval of a mean needs at least two values")
    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    margin = _quantile((1 + confidence) / 2) * float(data.std(ddof=1)) / math.sqrt(len(data))
    return Interval(mean - margin, mean + margin)


def paired_bootstrap(
    challenger: Mapping[str, float],
    champion: Mapping[str, float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Percentile bootstrap of the mean difference between two models over the same items.

    Items are drawn with replacement, each with its two values together (Efron & Tibshirani, "An
    Introduction to the Bootstrap", chapter 13; for model comparison Koehn, EMNLP 2004).

    Args:
        challenger, champion: item id → value in the same unit (per-item accuracy).
        confidence: of the interval.
        resamples: R; the order of the items does not matter, so a seed fixes the result.
        seed: of the resampling.

    Raises:
        InputError: the two do not cover the same items, or there are none.
    """
    differences = paired_differences(challenger, champion)
    # Items with equal differences are interchangeable, so drawing how often each distinct value
    # occurs is the same bootstrap at a fraction of the work.
    distinct, occurrences = np.unique(differences.round(12), return_counts=True)
    count = len(differences)
    drawn = np.random.default_rng(seed).multinomial(count, occurrences / count, size=resamples)
    means = drawn @ distinct / count
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], method="inverted_cdf")
    return PairedDifference(float(differences.mean()), float(low), float(high), count)


def paired_differences(
    challenger: Mapping[str, float], champion: Mapping[str, float]
) -> NDArray[np.float64]:
    """`challenger - champion` of each item.

    Raises:
        InputError: the two do not cover the same items, or there are none.
    """
    if challenger.keys() != champion.keys():
        missing, extra = champion.keys() - challenger.keys(), challenger.keys() - champion.keys()
        raise InputError(
            f"a paired comparison needs the same items on both sides: {len(missing)} are missing "
            f"from the challenger and {len(extra)} from the model it is compared with "
            f"(first: {min(missing | extra)}); evaluate both on the same benchmark"
        )
    if not challenger:
        raise InputError("a paired comparison needs at least one item")
    return np.array([challenger[item] - champion[item] for item in challenger])


def mean_upper_bound(
    values: NDArray[np.float64], highest: float, confidence: float = 0.95
) -> float:
    """One-sided upper bound of the mean of a quantity that never exceeds `highest`.

    The bound of Learned-Miller & Thomas, "A New Confidence Interval for the Mean of a Bounded
    Random Variable" (arXiv 1905.06208): the observed values and one pseudo-observation at
    `highest` get weights from the flat Dirichlet distribution, and the bound is the quantile
    `confidence` of the weighted mean. It assumes no normality. For values of 0 and `highest` it is
    the exact binomial bound of Clopper and Pearson, so it does not vanish where no loss was seen.

    Args:
        values: one for each independent unit, at least one.
        highest: the largest possible value.
        confidence: 0 < confidence < 1.

    Raises:
        ValueError: there are no values, or one exceeds `highest`.
    """
    if len(values) == 0 or values.max() > highest + 1e-9:
        raise ValueError(f"values of at most {highest:g} are needed, one at least")
    distinct, counts = np.unique(np.append(values, highest).round(12), return_counts=True)
    if len(distinct) == 1:
        return highest

    def missing(mean: float) -> float:
        return _share_above(distinct, counts, mean) - (1 - confidence)

    bound: Any = brentq(missing, distinct[0], highest, xtol=1e-10)
    return float(bound)


def _share_above(
    distinct: NDArray[np.float64], counts: NDArray[np.int_], threshold: float
) -> float:
    """Probability that the mean of `distinct` by Dirichlet(`counts`) weights exceeds `threshold`.

    The weights are independent gamma variables over their sum, so it is the probability that
    Σ (distinct - threshold)·Gamma(counts) is positive: an integral of the characteristic function,
    as in J. P. Imhof, "Computing the Distribution of Quadratic Forms in Normal Variables",
    Biometrika 48 (1961), equation 3.2.
    """
    a = distinct - threshold
    tangent, weight = _nodes()
    u = tangent / math.sqrt(float(np.sum(counts * a * a)))
    ua = np.multiply.outer(u, a)
    angle = np.arctan(ua) @ counts
    size = np.exp(-0.5 * (np.log1p(ua * ua) @ counts))
    return 0.5 + float(np.sum(weight * np.sin(angle) * size / tangent)) / math.pi


@cache
def _nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of an integral from 0 to infinity, by u = tan(angle)."""
    nodes, weights = np.polynomial.legendre.leggauss(2000)
    tangent = np.tan((nodes + 1) * math.pi / 4)
    return tangent, weights * math.pi / 4 * (1 + tangent**2)


def _quantile(probability: float) -> float:
    if not 0.5 < probability < 1:
        raise ValueError("confidence must lie strictly between 0 and 1")
    return NormalDist().inv_cdf(probability)
