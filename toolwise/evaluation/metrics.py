"""What was measured (`RolloutScore`) and what it says about tool use (`summarise`).

MLflow, the gate and the report use these names and this code. The trainer's log and the report of
prompt curation use the same names for what they compute of their own rollouts, which have no
tools-off counterfactual. `docs/metrics.md` explains the metrics in words.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple, TypedDict

from pydantic import TypeAdapter, ValidationError

from toolwise.agent import Rollout
from toolwise.data import grade
from toolwise.errors import InputError
from toolwise.statistics import mean_interval, wilson_interval

Mode = Literal["greedy", "sampled", "tools_off"]
"""`greedy` and `sampled` have tools on; `tools_off` is the counterfactual."""

ToolsOnMode = Literal["greedy", "sampled"]

METRIC_VERSION = 1
"""Of the definitions below and of how answers are scored; another version is another measure."""

OVERALL = "overall"
"""The group that holds every ability."""


class Metric(TypedDict):
    """A value with its 95% interval.

    `count` is what the interval rests on: items for everything per answer, calls for shares of
    calls. Without data `value`, `low` and `high` are None and `count` is 0.
    """

    value: float | None
    count: int
    low: float | None
    high: float | None


Summary = dict[str, dict[str, Metric]]
"""Group (`overall` or an ability) → metric name → metric."""


@dataclass(frozen=True, slots=True)
class RolloutScore:
    """One answer to one benchmark item.

    Args:
        task_id: the item.
        ability: the item's ability.
        mode: how it was answered.
        sample: which of the item's answers in this mode, from 0.
        correct: whether the answer is right.
        tool_calls: T, calls made (malformed ones included).
        tool_errors: calls that ended in an error of the model's doing.
        completion_tokens: tokens the model wrote.
        seconds: model and tool time, as one caller in the batch waited for it.
        tool_seconds: the part of `seconds` spent in tools.
        answer: the text of the final answer; None where there was none.
        scored_by: who says whether it is correct: `rule`, `judge`, ….
    """

    task_id: str
    ability: str
    mode: Mode
    sample: int
    correct: bool
    tool_calls: int
    tool_errors: int
    completion_tokens: int
    seconds: float
    tool_seconds: float
    answer: str | None
    scored_by: str = "rule"


_FIELDS = [field.name for field in dataclasses.fields(RolloutScore)]


class Graded(NamedTuple):
    """An answer, whether it is right, and who says so."""

    answer: str | None
    correct: bool
    by: str


def score(rollout: Rollout, mode: Mode, sample: int, graded: Graded | None = None) -> RolloutScore:
    """Score one rollout, as `graded`, or else by its task's answer type."""
    graded = graded or Graded(rollout.answer, grade(rollout.task, rollout.answer), "rule")
    return RolloutScore(
        task_id=rollout.task.id,
        ability=rollout.task.ability,
        mode=mode,
        sample=sample,
        correct=graded.correct,
        tool_calls=rollout.tool_calls,
        tool_errors=sum(call.result.is_error for call in rollout.calls),
        completion_tokens=rollout.completion_tokens,
        # Also where there were none: what is read back from JSON is a float.
        seconds=float(rollout.model_seconds + rollout.tool_seconds),
        tool_seconds=float(rollout.tool_seconds),
        answer=graded.answer,
        scored_by=graded.by,
    )


def solvable_items(scores: Iterable[RolloutScore]) -> dict[str, bool]:
    """Item → whether all its tools-off answers are right (the paper's pass@k = 1).

    Items without tools-off answers are absent: whether they need a tool is not known.
    """
    solvable: dict[str, bool] = {}
    for row in scores:
        if row.mode == "tools_off":
            solvable[row.task_id] = solvable.get(row.task_id, True) and row.correct
    return solvable


def item_means(
    scores: Iterable[RolloutScore], value: Callable[[RolloutScore], float]
) -> dict[str, float]:
    """Item → mean of `value` over the item's rows."""
    by_item: dict[str, list[float]] = {}
    for row in scores:
        by_item.setdefault(row.task_id, []).append(float(value(row)))
    return {item: fmean(values) for item, values in by_item.items()}


def summarise(scores: Sequence[RolloutScore], mode: ToolsOnMode) -> Summary:
    """Every metric of the tools-on rows of `mode`, overall and per ability.

    Items count once, however often they were sampled: an item's answers are averaged first, so
    that alike answers to one item do not pass for independent evidence.

    Args:
        scores: rows of all modes; the tools-off ones say which items are solvable without tools.
        mode: which tools-on rows are summarised.
    """
    solvable = solvable_items(scores)
    rows = [row for row in scores if row.mode == mode]
    groups = {OVERALL: rows}
    for ability in sorted({row.ability for row in scores}):
        groups[ability] = [row for row in rows if row.ability == ability]
    return {name: _measure(group, solvable) for name, group in groups.items()}


def flatten(summary: Summary, mode: ToolsOnMode) -> dict[str, float]:
    """`mode/group/metric` → value, metrics without data left out: the names MLflow shows."""
    return {
        f"{mode}/{group}/{name}": metric["value"]
        for group, metrics in summary.items()
        for name, metric in metrics.items()
        if metric["value"] is not None
    }


def write_scores(path: Path, scores: Iterable[RolloutScore]) -> None:
    """One JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        for row in scores:
            plain = {name: getattr(row, name) for name in _FIELDS}
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")


def read_scores(path: Path) -> list[RolloutScore]:
    """The scores at `path`.

    Raises:
        InputError: the file is missing, or a line is not a `RolloutScore`; names file and line.
    """
    row_type = TypeAdapter(RolloutScore)
    rows: list[RolloutScore] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    rows.append(row_type.validate_json(line))
                except ValidationError as error:
                    raise InputError(
                        f"{path}, line {number}: not a rollout score: {error}"
                    ) from None
    except OSError as error:
        raise InputError(f"{path}: scores cannot be read: {error.strerror}") from error
    return rows


def _measure(rows: Sequence[RolloutScore], solvable: Mapping[str, bool]) -> dict[str, Metric]:
    on_solvable = [row for row in rows if solvable.get(row.task_id) is True]
    on_unsolvable = [row for row in rows if solvable.get(row.task_id) is False]
    calls = sum(row.tool_calls for row in rows)
    known_calls = sum(row.tool_calls for row in rows if row.task_id in solvable)
    return {
        "accuracy": _rate(rows, lambda row: row.correct),
        "tool_call_rate": _rate(rows, _called),
        "redundant_call_rate": _rate(on_solvable, _called),
        "necessary_call_rate": _rate(on_unsolvable, _called),
        "wasted_calls": _share(sum(row.tool_calls for row in on_solvable), known_calls),
        "tool_error_rate": _share(sum(row.tool_errors for row in rows), calls),
        "calls_per_rollout": _mean(rows, lambda row: row.tool_calls),
        "tokens_per_answer": _mean(rows, lambda row: row.completion_tokens),
        "seconds_per_answer": _mean(rows, lambda row: row.seconds),
        "tool_seconds_per_answer": _mean(rows, lambda row: row.tool_seconds),
    }


def _called(row: RolloutScore) -> bool:
    return row.tool_calls > 0


def _rate(rows: Iterable[RolloutScore], holds: Callable[[RolloutScore], bool]) -> Metric:
    means = item_means(rows, holds).values()
    return _share(sum(means), len(means))


def _share(part: float, whole: int) -> Metric:
    if whole == 0:
        return Metric(value=None, count=0, low=None, high=None)
    low, high = wilson_interval(part, whole)
    return Metric(value=part / whole, count=whole, low=low, high=high)


def _mean(rows: Iterable[RolloutScore], value: Callable[[RolloutScore], float]) -> Metric:
    means = list(item_means(rows, value).values())
    if not means:
        return Metric(value=None, count=0, low=None, high=None)
    if len(means) == 1:
        return Metric(value=means[0], count=1, low=None, high=None)
    low, high = mean_interval(means)
    # None of these quantities can be negative, which the normal interval does not know.
    return Metric(value=fmean(means), count=len(means), low=max(0.0, low), high=high)
