"""The simulation is the gate's own arithmetic, and the page shows what it gives."""

from math import comb
from pathlib import Path

import numpy as np
import pytest
from gate_population import population

from toolwise.errors import InputError
from toolwise.markdown import filled
from toolwise.promotion.gate import MOST_LOST, Decision, decide
from toolwise.promotion.policy import GatePolicy
from toolwise.promotion.simulation import (
    accepts_accuracy,
    accepts_necessary,
    accepts_redundant,
    passes_accuracy,
    passes_necessary,
    passes_redundant,
)
from toolwise.promotion.simulation_page import PLACE, main
from toolwise.statistics import mean_upper_bound

PAGE = Path(__file__).parents[2] / "docs" / "gate.md"
POLICY = GatePolicy()


def verdict(decision: Decision, name: str) -> bool:
    return next(c for c in decision.criteria if c.name == name).verdict == "pass"


@pytest.mark.parametrize("calls", [0, 1, 3, 4, 5, 20])
def test_the_gate_accepts_exactly_what_the_simulation_says(calls: int):
    # Of 150 answers 2 with a call have the upper bound .0473, 3 have .0571.
    scores = population(150, 150, redundant=calls, abstained=calls)
    decision = decide(POLICY, scores, baseline=scores)
    redundant = verdict(decision, "redundant_call_rate")
    necessary = verdict(decision, "necessary_call_rate")
    assert accepts_redundant(POLICY, calls, 150) is redundant
    assert accepts_necessary(POLICY, 150 - calls, 150) is necessary


@pytest.mark.parametrize("lost", [0, 1, 2, 3, 6])
def test_the_gate_accepts_the_losses_that_the_simulation_accepts(lost: int):
    decision = decide(POLICY, population(150, 150, wrong=lost), baseline=population(150, 150))
    accepted = verdict(decision, "accuracy_drop")
    assert accepts_accuracy(POLICY, 0, lost, 300) is accepted


def test_the_chance_is_the_binomial_one():
    # 150 items: 2 calls pass (Wilson .0473), 3 do not (.0571).
    assert [accepts_redundant(POLICY, n, 150) for n in (2, 3)] == [True, False]
    by_hand = sum(comb(150, n) * 0.02**n * 0.98 ** (150 - n) for n in range(3))
    assert passes_redundant(POLICY, 0.02, 150) == pytest.approx(by_hand)


def test_a_model_beyond_the_threshold_is_seldom_promoted_and_too_few_items_never_are():
    for items in (50, 75, 150, 500, 2000):
        # The bound is one end of a two-sided 95% interval.
        assert passes_redundant(POLICY, 0.05, items) < 0.04
        assert passes_necessary(POLICY, 0.90, items) < 0.04
    assert passes_redundant(POLICY, 0.0, 72) == 0
    assert passes_redundant(POLICY, 0.0, 73) == 1
    assert passes_redundant(POLICY, 0.0, 49) == 0


def test_more_items_let_a_good_model_through_and_keep_a_bad_one_out():
    good = [passes_redundant(POLICY, 0.01, items) for items in (100, 300, 1000)]
    assert good == sorted(good)
    assert good[-1] > 0.999
    bad = [passes_redundant(POLICY, 0.10, items) for items in (100, 300, 1000)]
    assert bad == sorted(bad, reverse=True)


def test_a_necessary_call_missed_counts_as_a_redundant_one_made():
    mirrored = GatePolicy(redundant_call_rate_max=0.1, necessary_call_rate_min=0.9)
    assert passes_necessary(mirrored, 0.97, 150) == pytest.approx(
        passes_redundant(mirrored, 0.03, 150)
    )


def test_the_chance_to_keep_ones_accuracy_is_the_trinomial_one():
    # Few enough that every outcome can be summed: 60 items, 5% lost and 5% gained.
    by_hand = sum(
        comb(60, lost)
        * comb(60 - lost, gained)
        * 0.05 ** (lost + gained)
        * 0.9 ** (60 - lost - gained)
        for lost in range(13)
        for gained in range(13)
        if accepts_accuracy(POLICY, gained, lost, 60)
    )
    assert passes_accuracy(POLICY, 0.05, 0.05, 60) == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize("gained", [0.0, 0.01, 0.05])
def test_a_model_that_has_lost_as_much_as_the_policy_allows_passes_once_in_twenty_at_most(
    gained: float,
):
    allowed = POLICY.accuracy_drop_max
    for items in (50, 75, 149, 150, 200, 236, 300, 500, 1000):
        assert passes_accuracy(POLICY, gained + allowed, gained, items) <= 1 - POLICY.confidence


def test_nothing_lost_on_few_items_is_no_evidence():
    # 0.98^148 = .0503, 0.98^149 = .0493.
    assert not accepts_accuracy(POLICY, 0, 0, 148)
    assert accepts_accuracy(POLICY, 0, 0, 149)


@pytest.mark.parametrize(
    ("values", "chances"),
    [
        ([0.0, 0.25], [0.92, 0.08]),  # a quarter of the answers to 8% of the items
        ([-0.5, 0.0, 0.25, 0.5, 1.0], [0.02, 0.90, 0.04, 0.02, 0.02]),
    ],
)
def test_a_mean_of_several_answers_an_item_is_held_to_the_same_level(
    values: list[float], chances: list[float]
):
    assert np.dot(values, chances) >= POLICY.accuracy_drop_max
    rng = np.random.default_rng(7)
    drawn = rng.choice(values, (400, 200), p=chances)
    passed = np.mean([mean_upper_bound(losses, MOST_LOST) <= 0.02 for losses in drawn])
    # 5% and two standard errors of 400 draws.
    assert passed <= 0.072


def test_the_page_shows_what_the_command_gives(tmp_path: Path):
    page = PAGE.read_text()
    assert page.count("| 300 |") == 4
    copy, drawn = tmp_path / "gate.md", tmp_path / "gate.svg"
    copy.write_text(filled(page, {PLACE: "old"}))
    assert copy.read_text().count("| 300 |") == 0
    assert main(["--page", str(copy), "--picture", str(drawn)]) == 0
    assert copy.read_text() == PAGE.read_text()
    assert drawn.read_bytes() == PAGE.with_name("gate.svg").read_bytes()


def test_a_page_without_the_markers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text("no markers")
    assert main(["--page", str(page)]) == 2
    assert f"<!-- {PLACE}: start -->" in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot be read"):
        GatePolicy.load(tmp_path / "absent.yaml")
