"""Intervals against values worked out by hand and against independent implementations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from statsmodels.stats.proportion import proportion_confint

from toolwise.errors import InputError
from toolwise.statistics import (
    mean_interval,
    mean_upper_bound,
    paired_bootstrap,
    wilson_interval,
)


def test_wilson_of_8_in_10_is_the_value_worked_out_by_hand():
    # z² = 3.841459; centre .8 + z²/20 = .992073; margin z·√(.016 + z²/400) = .313617;
    # both divided by 1 + z²/10 = 1.384146.
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.490162, abs=1e-5)
    assert high == pytest.approx(0.943318, abs=1e-5)


def test_wilson_of_nothing_in_300_reaches_up_to_z2_over_n_plus_z2():
    low, high = wilson_interval(0, 300)
    assert low == 0
    assert high == pytest.approx(3.841459 / 303.841459, abs=1e-7)


@given(
    st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_wilson_agrees_with_statsmodels(draw: tuple[int, int], confidence: float):
    successes, count = draw
    expected = proportion_confint(successes, count, alpha=1 - confidence, method="wilson")
    assert wilson_interval(successes, count, confidence) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_not_a_proportion(successes: int, count: int):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(successes, count)


def test_mean_interval_of_0_and_2_is_1_plus_minus_z():
    # s = √2, so s/√n = 1.
    assert mean_interval([0, 2]) == pytest.approx((1 - 1.959964, 1 + 1.959964), abs=1e-6)


def test_mean_interval_of_one_value_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        mean_interval([3.0])


def test_bootstrap_of_one_loss_in_three_items_has_the_bounds_worked_out_by_hand():
    # The resampled mean is 0, -1/3, -2/3, -1 with probability 8/27, 12/27, 6/27, 1/27. From below
    # that is .037, .259, .704, 1: the 2.5% quantile is -1, the 97.5% one 0.
    lost = paired_bootstrap({"a": 0, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, resamples=200_000)
    assert lost.value == pytest.approx(-1 / 3)
    assert lost.low == pytest.approx(-1)
    assert lost.high == pytest.approx(0)
    assert lost.count == 3


def test_bootstrap_agrees_with_resampling_item_by_item():
    rng = np.random.default_rng(3)
    ours = dict(enumerate(rng.choice([0.0, 0.5, 1.0], 400)))
    theirs = dict(enumerate(rng.choice([0.0, 0.5, 1.0], 400)))
    result = paired_bootstrap(
        {str(k): v for k, v in ours.items()}, {str(k): v for k, v in theirs.items()}
    )
    differences = np.array([ours[i] - theirs[i] for i in range(400)])
    naive = differences[rng.integers(0, 400, (10_000, 400))].mean(axis=1)
    assert result.value == pytest.approx(differences.mean())
    assert result.low == pytest.approx(np.quantile(naive, 0.025), abs=0.005)
    assert result.high == pytest.approx(np.quantile(naive, 0.975), abs=0.005)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_bootstrap_does_not_depend_on_the_order_of_items_and_its_bounds_are_ordered(
    pairs: list[tuple[bool, bool]],
):
    ours = {str(i): float(a) for i, (a, _) in enumerate(pairs)}
    theirs = {str(i): float(b) for i, (_, b) in enumerate(pairs)}
    result = paired_bootstrap(ours, theirs, resamples=500)
    assert result.low <= result.value <= result.high
    assert result == paired_bootstrap(dict(reversed(ours.items())), theirs, resamples=500)


def test_bootstrap_needs_the_same_items_and_says_which_differ():
    with pytest.raises(InputError, match=r"1 are missing from the challenger and 2 from the model"):
        paired_bootstrap({"a": 1, "x": 1, "y": 1}, {"a": 1, "b": 1})
    with pytest.raises(InputError, match="at least one item"):
        paired_bootstrap({}, {})


def test_the_bound_of_no_loss_is_the_one_worked_out_by_hand():
    # None lost of n is as likely as 5% where 0.95 = 1 - (1 - bound)^n.
    assert mean_upper_bound(np.zeros(149), 1.0) == pytest.approx(1 - 0.05 ** (1 / 149), abs=1e-8)
    assert mean_upper_bound(np.zeros(1), 1.0) == pytest.approx(0.95, abs=1e-8)


@given(
    st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_the_bound_of_a_share_is_the_exact_binomial_one(draw: tuple[int, int], confidence: float):
    lost, count = draw
    values = np.array([1.0] * lost + [0.0] * (count - lost))
    expected = beta.ppf(confidence, lost + 1, count - lost) if lost < count else 1.0
    assert mean_upper_bound(values, 1.0, confidence) == pytest.approx(expected, abs=1e-6)


def test_the_bound_of_unequal_values_is_the_quantile_of_the_weighted_mean():
    rng = np.random.default_rng(5)
    values = rng.choice([-1.0, -0.25, 0.0, 0.25, 0.5], 80, p=[0.05, 0.1, 0.7, 0.1, 0.05])
    weights = rng.dirichlet(np.ones(81), 200_000)
    drawn = weights @ np.append(values, 1.0)
    assert mean_upper_bound(values, 1.0) == pytest.approx(np.quantile(drawn, 0.95), abs=5e-4)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=60))
def test_the_bound_lies_between_the_mean_and_the_highest_value(drawn: list[float]):
    values = np.array(drawn)
    assert values.mean() <= mean_upper_bound(values, 1.0, 0.9) <= 1.0


def test_values_above_the_highest_one_have_no_bound():
    for values in (np.array([0.5, 2.0]), np.array([])):
        with pytest.raises(ValueError, match="at most 1 are needed"):
            mean_upper_bound(values, 1.0)
