"""The gate's verdicts at boundaries worked out by hand, and its refusal to promote by default."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gate_population import TEMPLATE, population

from toolwise.errors import InputError
from toolwise.evaluation.metrics import RolloutScore
from toolwise.promotion.gate import Criterion, Decision, GatePolicy, decide


def criterion(decision: Decision, name: str, group: str = "overall") -> Criterion:
    return next(c for c in decision.criteria if (c.name, c.group) == (name, group))


def test_a_frugal_checkpoint_as_accurate_as_the_champion_is_promoted():
    scores = population(300, 300)
    decision = decide(GatePolicy(), scores, champion=scores)
    assert decision.decision == "promote"
    assert decision.reference == "champion"
    assert decision.reasons == ()
    redundant = criterion(decision, "redundant_call_rate")
    assert (redundant.value, redundant.count) == (0.0, 300)
    assert redundant.bound == pytest.approx(3.841459 / 303.841459)


@pytest.mark.parametrize(("solvable", "verdict"), [(72, "fail"), (73, "pass")])
def test_no_redundant_call_is_enough_only_once_its_upper_bound_is(solvable: int, verdict: str):
    # z²/(n + z²): 3.8415/75.8415 = .0507 for 72 items, 3.8415/76.8415 = .0500 for 73.
    scores = population(solvable, 300)
    decision = decide(GatePolicy(redundant_call_rate_max=0.05), scores, baseline=scores)
    assert criterion(decision, "redundant_call_rate").verdict == verdict
    assert decision.decision == ("promote" if verdict == "pass" else "reject")


@pytest.mark.parametrize(("unsolvable", "verdict"), [(34, "fail"), (35, "pass")])
def test_a_call_on_every_needed_item_is_enough_only_once_its_lower_bound_is(
    unsolvable: int, verdict: str
):
    # n/(n + z²): 34/37.8415 = .8985, 35/38.8415 = .9011.
    scores = population(300, unsolvable)
    decision = decide(GatePolicy(necessary_call_rate_min=0.9, min_items=30), scores, None, scores)
    assert criterion(decision, "necessary_call_rate").verdict == verdict


def test_a_model_that_never_calls_is_rejected():
    scores = population(300, 300, abstained=300)
    decision = decide(GatePolicy(), scores, champion=scores)
    assert decision.decision == "reject"
    assert [c.name for c in decision.criteria if c.verdict == "fail"] == ["necessary_call_rate"]


def test_a_model_that_calls_by_reflex_is_rejected():
    scores = population(300, 300, redundant=300)
    decision = decide(GatePolicy(), scores, champion=scores)
    assert [c.name for c in decision.criteria if c.verdict == "fail"] == ["redundant_call_rate"]
    assert "is not at most 0.05" in decision.reasons[0]


@pytest.mark.parametrize(("wrong_of_50", "verdict"), [(0, "pass"), (1, "pass"), (2, "fail")])
def test_an_accuracy_drop_whose_bound_is_the_allowed_one_passes_and_a_larger_one_fails(
    wrong_of_50: int, verdict: str
):
    # Every item loses the same share s, 0, .02 or .04. The pseudo-item loses all and weighs
    # Beta(1, 120), so that the bound is s + (1 - s)·(1 - .05^(1/120)).
    weight = 1 - 0.05 ** (1 / 120)

    def sampled(wrong: int) -> list[RolloutScore]:
        items = [row for row in population(60, 60) if row.mode == "tools_off"]
        for i in range(120):
            item = replace(TEMPLATE, task_id=f"math-{i}", mode="sampled", tool_calls=int(i >= 60))
            items += [replace(item, sample=k, correct=k >= wrong) for k in range(50)]
        return items

    allowed = 0.02 + 0.98 * weight
    policy = GatePolicy(mode="sampled", accuracy_drop_max=allowed, redundant_call_rate_max=0.1)
    decision = decide(policy, sampled(wrong_of_50), champion=sampled(0))
    drop = criterion(decision, "accuracy_drop")
    assert drop.verdict == verdict
    lost = wrong_of_50 / 50
    assert drop.bound == pytest.approx(lost + (1 - lost) * weight)
    assert drop.count == 120


def test_a_lucky_point_value_does_not_pass_where_the_bound_fails():
    # One item of 120 lost: .0083 is below .02. The 95% bound b of Clopper and Pearson solves
    # (1 - b)^120 + 120·b·(1 - b)^119 = .05: b = .0389.
    decision = decide(GatePolicy(), population(60, 60, wrong=1), champion=population(60, 60))
    drop = criterion(decision, "accuracy_drop")
    assert drop.value == pytest.approx(1 / 120)
    assert drop.bound == pytest.approx(0.0389, abs=1e-4)
    assert drop.verdict == "fail"


def test_the_champion_is_the_reference_where_there_is_one():
    scores, worse = population(100, 100), population(100, 100, wrong=100)
    assert decide(GatePolicy(), worse, champion=worse, baseline=scores).reference == "champion"
    against_baseline = decide(GatePolicy(), worse, baseline=scores)
    assert against_baseline.reference == "baseline"
    assert criterion(against_baseline, "accuracy_drop").verdict == "fail"


@pytest.mark.parametrize(
    ("challenger", "reference", "reason"),
    [
        ([], population(100, 100), "no greedy answers"),
        (population(100, 100), None, "neither a champion nor a baseline"),
        (population(100, 100), [], "needs the same items on both sides"),
        (population(100, 100), population(100, 101), "1 are missing from the challenger"),
        (population(100, 20), population(100, 20), "20 items are too few"),
        (population(200, 0), population(200, 0), "no items to measure it on"),
        (
            [row for row in population(100, 100) if row.mode == "greedy"],
            population(100, 100),
            "no tools-off answers",
        ),
        (population(100, 100)[:-1], population(100, 100), "1 items lack greedy answers or have"),
        (population(100, 100)[1:], population(100, 100), "1 items lack greedy answers or have"),
        (
            [*population(100, 100), population(100, 100)[0]],
            population(100, 100),
            "item math-0 has its greedy answer 0 more than once",
        ),
        (
            [*population(100, 100), replace(population(100, 100)[0], sample=1)],
            population(100, 100),
            "199 items lack greedy answers or have fewer greedy or tools-off answers than the rest",
        ),
    ],
)
def test_what_cannot_be_judged_is_rejected_with_the_reason(
    challenger: list[RolloutScore], reference: list[RolloutScore] | None, reason: str
):
    decision = decide(GatePolicy(), challenger, champion=reference)
    assert decision.decision == "reject"
    assert any(reason in why for why in decision.reasons), decision.reasons


def test_per_ability_catches_what_the_overall_rate_hides():
    # 10 of 400 redundant overall is fine; all of them in search, 10 of 100, are not.
    scores = population(300, 100) + population(100, 100, redundant=10, ability="search")
    assert decide(GatePolicy(), scores, champion=scores).decision == "promote"
    decision = decide(GatePolicy(per_ability=True), scores, champion=scores)
    assert [(c.group, c.name) for c in decision.criteria if c.verdict == "fail"] == [
        ("search", "redundant_call_rate")
    ]
    assert decision.reasons[0].startswith("search/redundant_call_rate: 0.1000 over 100 items")


def test_the_decision_file_lists_every_criterion_and_reads_back(tmp_path: Path):
    scores = population(100, 100)
    decision = decide(GatePolicy(), scores, champion=scores)
    decision.write(tmp_path / "decision.json")
    assert Decision.read(tmp_path / "decision.json") == decision
    written = json.loads((tmp_path / "decision.json").read_text())
    assert written["decision"] == "promote"
    assert [
        set(c) >= {"name", "value", "bound", "threshold", "verdict"} for c in written["criteria"]
    ] == [True] * 3
    assert "necessary_call_rate: 1.0000 over 100 items, lower bound 0.9630" in decision.explain()
    (tmp_path / "decision.json").write_text("{}")
    with pytest.raises(InputError, match="not a decision file"):
        Decision.read(tmp_path / "decision.json")


def test_a_policy_file_is_read_and_a_wrong_field_is_named(tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_text("redundant_call_rate_max: 0.1\nper_ability: true\n")
    assert GatePolicy.load(path) == GatePolicy(redundant_call_rate_max=0.1, per_ability=True)
    path.write_text("redundant_call_rate_max: 2\nmin_itmes: 3\n")
    with pytest.raises(InputError, match=r"policy.yaml: redundant_call_rate_max: .*; min_itmes: "):
        GatePolicy.load(path)
    path.write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        GatePolicy.load(path)
    with pytest.raises(InputError, match="No such file"):
        GatePolicy.load(tmp_path / "absent.yaml")
