"""Intervals: Wilson's for shares, the normal one for means, a paired bootstrap for differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

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
        lower_bound: one-sided bound; the true difference lies above it at that confidence.
        count: items.
    """

    value: float
    low: float
    high: float
    lower_bound: float
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
        confidence: of the two-sided interval, and of the one-sided bound.
        resamples: R; the order of the items does not matter, so a seed fixes the result.
        seed: of the resampling.

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
    differences = np.array([challenger[item] - champion[item] for item in challenger])
    # Items with equal differences are interchangeable, so drawing how often each distinct value
    # occurs is the same bootstrap at a fraction of the work.
    distinct, occurrences = np.unique(differences.round(12), return_counts=True)
    count = len(differences)
    drawn = np.random.default_rng(seed).multinomial(count, occurrences / count, size=resamples)
    means = drawn @ distinct / count
    tail = (1 - confidence) / 2
    low, lower_bound, high = np.quantile(
        means, [tail, 1 - confidence, 1 - tail], method="inverted_cdf"
    )
    return PairedDifference(
        float(differences.mean()), float(low), float(high), float(lower_bound), count
    )


def _quantile(probability: float) -> float:
    if not 0.5 < probability < 1:
        raise ValueError("confidence must lie strictly between 0 and 1")
    return NormalDist().inv_cdf(probability)
