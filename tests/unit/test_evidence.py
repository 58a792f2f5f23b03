"""What was measured on other items, by other metrics or not to the end never gets promoted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolwise.errors import InputError
from toolwise.evaluation.comparability import AnswerSettings, UsedBackend, UsedJudge, UsedSearch
from toolwise.evaluation.metrics import METRIC_VERSION, RolloutScore, write_scores
from toolwise.evaluation.settings import EvaluationSettings
from toolwise.promotion.evidence import Evaluation
from toolwise.promotion.gate import decide_on
from toolwise.promotion.policy import GatePolicy

ITEMS = 200
DIGEST = "ab" * 32


def frugal_scores() -> list[RolloutScore]:
    """Half of the items need a call and get one; the others get none."""
    rows = []
    for i in range(ITEMS):
        row = RolloutScore(f"{i}", "math", "greedy", 0, True, i % 2, 0, 9, 0.5, 0.0, "7")
        rows += [row, replace(row, mode="tools_off", correct=i % 2 == 0, tool_calls=0)]
    return rows


SETTINGS = AnswerSettings(
    samples=0,
    counterfactual_samples=1,
    counterfactual_temperature=0.7,
    counterfactual_top_p=0.8,
    max_tokens=512,
    max_turns=4,
)
JUDGE = UsedJudge(model="qwen", base_url="http://judge/v1")
LOCAL, SEARXNG = (
    UsedSearch(text=UsedBackend(backend=backend, url=url, results=5))
    for backend, url in (("local", None), ("searxng", "http://searxng"))
)
SOUND = Evaluation(
    frugal_scores(),
    DIGEST,
    METRIC_VERSION,
    ITEMS,
    {"vstar": 140, "treebench": 60},
    settings=SETTINGS,
)


def test_a_sound_evaluation_is_promoted_and_the_decision_says_on_what():
    decision = decide_on(GatePolicy(), SOUND, champion=SOUND, version="4")
    assert decision.decision == "promote"
    assert (decision.champion, decision.benchmark) == ("4", DIGEST)
    assert decision.metric_version == METRIC_VERSION
    assert "accuracy compared with the champion (version 4)" in decision.explain()
    assert "items abababababab" in decision.explain()


@pytest.mark.parametrize(
    ("policy", "challenger", "reason"),
    [
        ({}, {"benchmark": None}, "no benchmark digest"),
        ({"dataset": "cd" * 8}, {}, "measured on the items abababababab, and the policy takes"),
        ({}, {"metric_version": None}, "metrics without a version, and this is 1"),
        ({}, {"metric_version": 2}, "version 2 of the metrics, and this is 1"),
        ({}, {"items": None}, "does not say how many items"),
        ({}, {"items": 201}, "200 items have scores, and 201 were to be answered"),
        ({}, {"settings": AnswerSettings()}, "does not say how many tools_off answers"),
        (
            {},
            {"settings": SETTINGS.model_copy(update={"counterfactual_samples": 8})},
            "200 items do not have the 8 tools_off answers that the settings ask for (first: 0, "
            "which has 1)",
        ),
        ({"benchmarks": ["mathvista"]}, {}, "mathvista is missing (answered: treebench, vstar)"),
        ({"benchmarks": ["vstar"]}, {"sources": None}, "vstar is missing (answered: none is"),
        (
            {"benchmarks": ["vstar", "treebench"], "min_items": 61},
            {},
            "60 items of the benchmark treebench are too few; the policy asks for 61",
        ),
    ],
)
def test_an_evaluation_that_is_no_evidence_is_rejected_with_the_reason(
    policy: dict[str, Any], challenger: dict[str, Any], reason: str
):
    # The reference is as wrong as the challenger, so the two by themselves would compare well.
    unsound = replace(SOUND, **challenger)
    decision = decide_on(GatePolicy(**policy), unsound, champion=unsound, baseline=unsound)
    assert decision.decision == "reject"
    assert any(reason in why for why in decision.reasons), decision.reasons
    assert {c.name for c in decision.criteria if c.verdict == "fail"} == {"evidence"}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"benchmark": "cd" * 32}, "it answered other items (cdcdcdcdcdcd, here abababababab)"),
        ({"corpus": "cd" * 32}, "it searched other texts (cdcdcdcdcdcd, here unknown ones)"),
        ({"metric_version": 7}, "measured by version 7 of the metrics, here by version 1"),
        ({"metric_version": None}, "measured by metrics without a version, here by version 1"),
        (
            {"settings": SETTINGS.model_copy(update={"counterfactual_samples": 8})},
            "it was measured with counterfactual_samples 8, here with 1",
        ),
        (
            {"settings": SETTINGS.model_copy(update={"counterfactual_temperature": 1.0})},
            "it was measured with counterfactual_temperature 1, here with 0.7",
        ),
        (
            {"settings": AnswerSettings()},
            "it was measured with counterfactual_samples unknown, here with 1",
        ),
        (
            {"settings": SETTINGS.model_copy(update={"judge": JUDGE})},
            "it was measured with judge qwen at http://judge/v1, here with none",
        ),
        (
            {"settings": SETTINGS.model_copy(update={"search": SEARXNG})},
            "it was measured with search text (backend searxng, url http://searxng, results 5), "
            "here with none",
        ),
    ],
)
def test_a_champion_or_baseline_measured_otherwise_is_a_rejection(
    other: dict[str, Any], reason: str
):
    unlike = replace(SOUND, **other)
    for reference in ({"champion": unlike, "baseline": SOUND}, {"baseline": unlike}):
        decision = decide_on(GatePolicy(), SOUND, **reference)
        assert decision.decision == "reject"
        assert decision.reference == next(iter(reference))
        assert any(reason in why for why in decision.reasons), decision.reasons


def test_the_number_of_sampled_answers_matters_where_they_are_judged():
    other = replace(SOUND, settings=SETTINGS.model_copy(update={"samples": 4}))
    assert SOUND.unlike(other, GatePolicy()) is None
    why = "it was measured with samples 4, here with 0"
    assert SOUND.unlike(other, GatePolicy(mode="sampled")) == why


def test_other_judges_and_other_searches_do_not_compare():
    ours = SETTINGS.model_copy(update={"judge": JUDGE, "search": LOCAL})
    theirs = SETTINGS.model_copy(
        update={"judge": JUDGE.model_copy(update={"model": "gpt"}), "search": SEARXNG}
    )
    mine, other = (replace(SOUND, settings=settings) for settings in (ours, theirs))
    assert mine.unlike(mine, GatePolicy()) is None
    assert mine.unlike(other, GatePolicy()) == (
        "it was measured with search text (backend searxng, url http://searxng, results 5), here "
        "with text (backend local, results 5); "
        "it was measured with judge gpt at http://judge/v1, here with qwen at http://judge/v1"
    )


def test_of_the_judge_and_the_search_counts_only_what_changes_the_result():
    def used(
        judge: dict[str, Any] | None, search: dict[str, Any] | None
    ) -> tuple[UsedJudge | None, UsedSearch | None]:
        settings = EvaluationSettings.model_validate({"judge": judge, "search": search})
        read = AnswerSettings.model_validate_json(settings.model_dump_json())
        return read.judge, read.search

    judge = {"model": "qwen", "base_url": "http://judge/v1"}
    asked = {"timeout": 5.0, "concurrency": 1, "api_key_env": "KEY", "budget": {"tokens": 9}}
    text = {"backend": "local"}
    image = {"backend": "serper", "upload": "s3://bucket/pictures"}
    moved = image | {"upload": "s3://bucket/elsewhere"}
    assert used(judge, {"text": text, "image": image}) == used(
        judge | asked, {"text": text, "image": moved}
    )
    assert used(judge, None)[0] == JUDGE
    assert used(None, {"text": text})[1] == LOCAL
    # An evaluation of before there were judges and searches says neither.
    assert used(None, {}) == used(None, None) == (None, None)
    assert (AnswerSettings().judge, AnswerSettings().search) == (None, None)


def test_a_policy_may_ask_for_the_stage_before_where_the_champion_cannot_be_compared():
    policy = GatePolicy(incomparable_champion="baseline")
    elsewhere = replace(SOUND, benchmark="cd" * 32)
    decision = decide_on(policy, SOUND, champion=elsewhere, baseline=SOUND, version="4")
    assert (decision.decision, decision.reference, decision.champion) == (
        "promote",
        "baseline",
        None,
    )
    assert decide_on(policy, SOUND, champion=elsewhere).decision == "reject"
    assert decide_on(policy, SOUND, champion=elsewhere, baseline=elsewhere).decision == "reject"


def test_a_dataset_may_be_named_by_the_beginning_of_its_digest():
    policy = GatePolicy(dataset=DIGEST[:12])
    assert decide_on(policy, SOUND, baseline=SOUND).decision == "promote"


def test_an_evaluation_is_read_and_what_it_does_not_say_is_none(tmp_path: Path):
    write_scores(tmp_path / "scores.jsonl", SOUND.scores)
    facts = {
        "benchmark": DIGEST,
        "metric_version": 1,
        "items": ITEMS,
        "sources": {"vstar": 200},
        "checkpoint": "c1" * 32,
        "settings": {**SETTINGS.model_dump(), "batch_size": 256},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(facts))
    assert Evaluation.read(tmp_path) == replace(SOUND, sources={"vstar": 200}, checkpoint="c1" * 32)
    (tmp_path / "metrics.json").write_text("{}")
    bare = Evaluation.read(tmp_path)
    assert replace(bare, scores=()) == Evaluation((), None, None, None, None, None)
    for text in (
        "{",
        "[]",
        '{"benchmark": 7}',
        '{"sources": ["vstar"]}',
        '{"items": "200"}',
        '{"settings": 8}',
    ):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(InputError, match=r"metrics\.json: not the metrics of an evaluation"):
            Evaluation.read(tmp_path)
