"""Metrics against counts made by hand."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolwise.agent import CallRecord, Rollout, Turn
from toolwise.data import Task
from toolwise.errors import InputError
from toolwise.evaluation.metrics import (
    Mode,
    RolloutScore,
    flatten,
    read_scores,
    score,
    solvable_items,
    summarise,
    write_scores,
)
from toolwise.tools import ToolResult


def row(
    task_id: str, mode: Mode, correct: bool = True, calls: int = 0, **changes: Any
) -> RolloutScore:
    fields: dict[str, Any] = {
        "ability": "perception",
        "sample": 0,
        "tool_errors": 0,
        "completion_tokens": 10,
        "seconds": 1.0,
        "tool_seconds": 0.0,
        "answer": "7",
    }
    return RolloutScore(
        task_id=task_id, mode=mode, correct=correct, tool_calls=calls, **{**fields, **changes}
    )


def counterfactual(task_id: str, *correct: bool, ability: str = "perception") -> list[RolloutScore]:
    return [
        row(task_id, "tools_off", right, sample=i, ability=ability)
        for i, right in enumerate(correct)
    ]


# a and c are solved in every tools-off sample, b in one of two, d has none.
SCORES = [
    *counterfactual("a", True, True),
    *counterfactual("b", False, True),
    *counterfactual("c", True, True, ability="math"),
    row("a", "greedy", True, calls=1, completion_tokens=20),
    row("b", "greedy", True, calls=2, tool_errors=1, completion_tokens=40),
    row("c", "greedy", False, calls=0, ability="math", completion_tokens=10),
    row("d", "greedy", True, calls=1, ability="math", completion_tokens=10),
]


def test_an_item_is_solvable_only_if_every_tools_off_sample_is_right():
    assert solvable_items(SCORES) == {"a": True, "b": False, "c": True}


@pytest.mark.parametrize(
    ("group", "name", "value", "count"),
    [
        ("overall", "accuracy", 3 / 4, 4),
        ("overall", "tool_call_rate", 3 / 4, 4),
        ("overall", "redundant_call_rate", 1 / 2, 2),  # a of a, c
        ("overall", "necessary_call_rate", 1.0, 1),  # b; d is not known
        ("overall", "wasted_calls", 1 / 3, 3),  # a's one of a's and b's three
        ("overall", "tool_error_rate", 1 / 4, 4),
        ("overall", "calls_per_rollout", 1.0, 4),
        ("overall", "tokens_per_answer", 20.0, 4),
        ("overall", "seconds_per_answer", 1.0, 4),
        ("perception", "accuracy", 1.0, 2),
        ("perception", "redundant_call_rate", 1.0, 1),
        ("math", "accuracy", 1 / 2, 2),
        ("math", "redundant_call_rate", 0.0, 1),
        ("math", "necessary_call_rate", None, 0),
    ],
)
def test_summary_matches_the_count_by_hand(group: str, name: str, value: float | None, count: int):
    metric = summarise(SCORES, "greedy")[group][name]
    assert metric["value"] == (None if value is None else pytest.approx(value))
    assert metric["count"] == count


def test_rates_carry_the_wilson_interval_of_their_count():
    # 1 of 2: centre .5, half width z·√(1/8 + z²/16)/(1 + z²/2) = .405466
    metric = summarise(SCORES, "greedy")["overall"]["redundant_call_rate"]
    assert metric["low"] == pytest.approx(0.5 - 0.405466, abs=1e-5)
    assert metric["high"] == pytest.approx(0.5 + 0.405466, abs=1e-5)


def test_samples_of_one_item_count_as_one_item():
    scores = [
        *counterfactual("a", True),
        *counterfactual("b", True),
        *(row("a", "sampled", calls=calls, sample=i) for i, calls in enumerate([1, 1, 1, 0])),
        *(row("b", "sampled", calls=0, sample=i) for i in range(4)),
    ]
    metric = summarise(scores, "sampled")["overall"]["redundant_call_rate"]
    assert metric["value"] == pytest.approx(3 / 8)
    assert metric["count"] == 2


def test_without_rows_of_a_mode_every_metric_is_empty():
    summary = summarise(SCORES, "sampled")
    assert set(summary) == {"overall", "math", "perception"}
    empty = {"value": None, "count": 0, "low": None, "high": None}
    assert all(metric == empty for group in summary.values() for metric in group.values())
    assert flatten(summary, "sampled") == {}


def test_flat_names_are_mode_group_metric():
    flat = flatten(summarise(SCORES, "greedy"), "greedy")
    assert flat["greedy/overall/redundant_call_rate"] == pytest.approx(0.5)
    assert "greedy/math/necessary_call_rate" not in flat


def test_a_mean_of_one_item_has_no_interval_and_none_is_negative():
    assert summarise([row("a", "greedy", calls=3)], "greedy")["overall"]["calls_per_rollout"] == {
        "value": 3.0,
        "count": 1,
        "low": None,
        "high": None,
    }
    two = [row("a", "greedy", calls=0), row("b", "greedy", calls=1)]
    assert summarise(two, "greedy")["overall"]["calls_per_rollout"]["low"] == 0.0


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40)
)
def test_redundant_and_necessary_calls_add_up_to_all_calls(items: list[tuple[bool, bool, int]]):
    scores = [
        s
        for i, (solvable, correct, calls) in enumerate(items)
        for s in (
            *counterfactual(str(i), solvable, solvable),
            row(str(i), "greedy", correct, calls=calls),
        )
    ]
    group = summarise(scores, "greedy")["overall"]
    called = sum(
        (group[name]["value"] or 0) * group[name]["count"]
        for name in ("redundant_call_rate", "necessary_call_rate")
    )
    assert called == pytest.approx((group["tool_call_rate"]["value"] or 0) * len(items))
    for metric in group.values():
        if metric["low"] is not None and metric["high"] is not None:
            assert metric["low"] - 1e-12 <= (metric["value"] or 0) <= metric["high"] + 1e-12


def test_a_rollout_is_scored_with_its_calls_errors_and_times():
    task = Task(id="t", source="s", ability="math", question="933+1?", answer=("934",))
    rollout = Rollout(
        task,
        [],
        turns=[Turn("", "stop", 5, 7, seconds=0.5), Turn("", "stop", 9, 4, seconds=0.25)],
        calls=[
            CallRecord("python", {}, ToolResult("boom", is_error=True, seconds=0.125)),
            CallRecord("python", {}, ToolResult("934", seconds=0.125)),
        ],
        answer="934",
    )
    assert score(rollout, "sampled", 2) == RolloutScore(
        "t", "math", "sampled", 2, True, 2, 1, 11, 1.0, 0.25, "934"
    )


def test_scores_survive_the_file_and_a_wrong_line_is_named(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    write_scores(path, SCORES)
    assert read_scores(path) == SCORES
    path.write_text(path.read_text() + '{"task_id": "x"}\n')
    with pytest.raises(InputError, match=r"scores.jsonl, line 11"):
        read_scores(path)
    with pytest.raises(InputError, match="No such file"):
        read_scores(tmp_path / "absent.jsonl")
