"""The gate: a policy and measured scores in, a decision with its reasons out.

It compares bounds, not point values, so that a model passes on evidence and not on luck. Every
criterion must hold; whatever cannot be judged (no data, too few items, nothing to compare with)
is a rejection that says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from toolwise.errors import InputError
from toolwise.evaluation.metrics import (
    OVERALL,
    Metric,
    RolloutScore,
    ToolsOnMode,
    item_means,
    summarise,
)
from toolwise.promotion.evidence import Evaluation
from toolwise.promotion.policy import GatePolicy
from toolwise.statistics import mean_upper_bound, paired_differences, wilson_interval
from toolwise.storage import atomic_file

Reference = Literal["champion", "baseline"]

MOST_LOST = 1.0
"""The accuracy that an item can lose at most."""

_ROUNDING = 1e-9
"""A bound that equals its threshold passes, whatever the last bit of a float says."""


_MEANINGS = {
    "redundant_call_rate": "how often it calls a tool on items it solves without one",
    "necessary_call_rate": "how often it calls a tool on items it does not solve without one",
    "accuracy_drop": "accuracy lost against what it is compared with, item by item",
}


class Criterion(BaseModel):
    """One thing the policy asks, and how it came out.

    Attributes:
        name: `redundant_call_rate`, `necessary_call_rate`, `accuracy_drop`; `evidence` where the
            evaluation itself does not count, `champion` where that changed meanwhile.
        group: `overall` or an ability.
        value: the point value; None where it could not be measured.
        bound: the end of its interval that is held against the threshold.
        threshold: from the policy, where it has one.
        count: items it rests on.
        verdict: `pass` or `fail`.
        why: the comparison in words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    group: str
    value: float | None
    bound: float | None
    threshold: float | None
    count: int
    verdict: Literal["pass", "fail"]
    why: str


class Decision(BaseModel):
    """The gate's verdict: what `decision.json` holds.

    Attributes:
        decision: `promote` only if every criterion passes.
        reference: what accuracy was compared with; None where there was nothing.
        policy: the thresholds applied.
        criteria: every criterion, overall first.
        champion: version in the registry that accuracy was compared with.
        benchmark: digest of the items it was judged on.
        metric_version: of the definitions it was judged by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Literal["promote", "reject"]
    reference: Reference | None
    policy: GatePolicy
    criteria: tuple[Criterion, ...]
    champion: str | None = None
    benchmark: str | None = None
    metric_version: int | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was rejected: the failed criteria in words, none after a promotion."""
        return tuple(c.why for c in self.criteria if c.verdict == "fail")

    def explain(self) -> str:
        """The decision and each criterion, a line each."""
        return "\n".join([self._headline(), *(_line(c) for c in self.criteria)])

    def _headline(self) -> str:
        reference = "nothing" if self.reference is None else f"the {self.reference}"
        if self.champion is not None:
            reference += f" (version {self.champion})"
        items = f", items {self.benchmark[:12]}" if self.benchmark else ""
        return (
            f"{self.decision} ({self.policy.mode} answers{items}, bounds at "
            f"{100 * self.policy.confidence:g}%, accuracy compared with {reference})"
        )

    def rejected(self, name: str, why: str) -> Decision:
        """The same decision, but rejected for one reason more."""
        return self.model_copy(
            update={"decision": "reject", "criteria": (_refusal(name, why), *self.criteria)}
        )

    def write(self, path: Path) -> None:
        """Write `decision.json`."""
        with atomic_file(path) as partial:
            partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Decision:
        """The decision at `path`; `InputError` where it is not one."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: the decision cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise InputError(f"{path}: not a decision file: {error}") from None


def decide(
    policy: GatePolicy,
    challenger: Sequence[RolloutScore],
    champion: Sequence[RolloutScore] | None = None,
    baseline: Sequence[RolloutScore] | None = None,
) -> Decision:
    """Hold scores against the policy; `decide_on` also asks what they were measured on.

    Args:
        policy: the thresholds.
        challenger: scores of the checkpoint that wants to be promoted, all modes.
        champion: scores of the current champion on the same benchmark.
        baseline: scores of the stage the challenger was trained from, on the same benchmark;
            accuracy is compared with it where there is no champion.

    Returns:
        A promotion only if every criterion passes.
    """
    reference: Reference | None = None
    compared: Sequence[RolloutScore] = ()
    if champion is not None:
        reference, compared = "champion", champion
    elif baseline is not None:
        reference, compared = "baseline", baseline
    criteria = tuple(_criteria(policy, challenger, compared, reference))
    promoted = all(criterion.verdict == "pass" for criterion in criteria)
    return Decision(
        decision="promote" if promoted else "reject",
        reference=reference,
        policy=policy,
        criteria=criteria,
    )


def decide_on(
    policy: GatePolicy,
    challenger: Evaluation,
    champion: Evaluation | None = None,
    baseline: Evaluation | None = None,
    *,
    version: str | None = None,
) -> Decision:
    """Hold an evaluation against the policy.

    An evaluation of other items, or by other metrics or settings, than the policy's, the champion's
    or the baseline's is rejected with that reason, whatever its scores say.

    Args:
        policy: the thresholds.
        challenger: of the checkpoint that wants to be promoted.
        champion: of the current champion.
        baseline: of the stage the challenger was trained from; accuracy is compared with it where
            there is no champion, or where the policy says so of one that cannot be compared.
        version: the champion's in the registry.
    """
    unlike = challenger.unlike(champion, policy) if champion else None
    if unlike and policy.incomparable_champion == "baseline":
        champion, version, unlike = None, None, None
    if not champion and baseline:
        unlike = challenger.unlike(baseline, policy)
    decision = decide(
        policy,
        challenger.scores,
        champion.scores if champion else None,
        baseline.scores if baseline else None,
    )
    if unlike:
        remedy = "evaluate both on the same items with the same settings and release"
        why = f"the {decision.reference} cannot be compared with: {unlike}; {remedy}"
        decision = decision.rejected("evidence", why)
    for fault in challenger.faults(policy):
        decision = decision.rejected("evidence", fault)
    return decision.model_copy(
        update={
            "champion": version if champion else None,
            "benchmark": challenger.benchmark,
            "metric_version": challenger.metric_version,
        }
    )


def at_most(bound: float, threshold: float) -> bool:
    """Whether an upper bound keeps to its threshold."""
    return bound <= threshold + _ROUNDING


def at_least(bound: float, threshold: float) -> bool:
    """Whether a lower bound reaches its threshold."""
    return bound >= threshold - _ROUNDING


def _refusal(name: str, why: str) -> Criterion:
    return Criterion(
        name=name,
        group=OVERALL,
        value=None,
        bound=None,
        threshold=None,
        count=0,
        verdict="fail",
        why=f"{name}: {why}",
    )


def _line(criterion: Criterion) -> str:
    """A criterion's verdict, and what it means."""
    meaning = _MEANINGS.get(criterion.name)
    return f"  {criterion.verdict:<4}  {criterion.why}" + (
        f"\n        {meaning}" if meaning else ""
    )


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a criterion is judged on; `gap` says what is missing where it cannot be."""

    value: float | None = None
    bound: float | None = None
    count: int = 0
    gap: str | None = None


def _criteria(
    policy: GatePolicy,
    challenger: Sequence[RolloutScore],
    compared: Sequence[RolloutScore],
    reference: Reference | None,
) -> Iterator[Criterion]:
    gap = _gap(challenger, policy.mode)
    for group, metrics in summarise(challenger, policy.mode).items():
        if group != OVERALL and not policy.per_ability:
            continue
        for name in ("redundant_call_rate", "necessary_call_rate"):
            yield _judge(policy, group, name, _call_rate(policy, name, metrics[name], gap))
        drop = _accuracy_drop(policy, group, challenger, compared, reference)
        yield _judge(policy, group, "accuracy_drop", drop)


def _gap(scores: Sequence[RolloutScore], mode: ToolsOnMode) -> str | None:
    """What keeps call rates from meaning anything.

    Every item needs as many answers as the others, in `mode` and without tools, each once.
    """
    answers = Counter((row.task_id, row.mode, row.sample) for row in scores)
    item, twice, number = max(answers, key=answers.__getitem__, default=("", mode, 0))
    if answers[item, twice, number] > 1:
        return f"item {item} has its {twice} answer {number} more than once"
    tools_on = Counter(row.task_id for row in scores if row.mode == mode)
    tools_off = Counter(row.task_id for row in scores if row.mode == "tools_off")
    if not tools_on:
        return f"no {mode} answers"
    if not tools_off:
        return "no tools-off answers, so which items need a tool is not known"
    uneven = {
        item
        for item in tools_on | tools_off
        for given in (tools_on, tools_off)
        if given[item] < max(given.values())
    }
    if uneven:
        return (
            f"{len(uneven)} items lack {mode} answers or have fewer {mode} or tools-off answers "
            f"than the rest (first: {min(uneven)})"
        )
    return None


def _call_rate(policy: GatePolicy, name: str, metric: Metric, gap: str | None) -> _Evidence:
    value, count = metric["value"], metric["count"]
    if value is None:
        return _Evidence(gap=gap or "no items to measure it on")
    low, high = wilson_interval(value * count, count, policy.confidence)
    return _Evidence(value, high if name == "redundant_call_rate" else low, count, gap)


def _accuracy_drop(
    policy: GatePolicy,
    group: str,
    challenger: Sequence[RolloutScore],
    compared: Sequence[RolloutScore],
    reference: Reference | None,
) -> _Evidence:
    if reference is None:
        return _Evidence(gap="neither a champion nor a baseline to compare with")

    def accuracy(scores: Sequence[RolloutScore]) -> dict[str, float]:
        rows = (r for r in scores if r.mode == policy.mode and group in (OVERALL, r.ability))
        return item_means(rows, lambda row: row.correct)

    try:
        gained = paired_differences(accuracy(challenger), accuracy(compared))
    except InputError as error:
        return _Evidence(gap=f"cannot be compared with the {reference}: {error}")
    lost = 0.0 - gained  # so that "no difference" does not read -0
    bound = mean_upper_bound(lost, MOST_LOST, policy.confidence)
    return _Evidence(float(lost.mean()), bound, len(lost))


def _judge(policy: GatePolicy, group: str, name: str, evidence: _Evidence) -> Criterion:
    """Compare a bound with its threshold; a gap in the data or too few items fail first."""
    is_ceiling = name != "necessary_call_rate"
    threshold = {
        "redundant_call_rate": policy.redundant_call_rate_max,
        "necessary_call_rate": policy.necessary_call_rate_min,
        "accuracy_drop": policy.accuracy_drop_max,
    }[name]
    value, bound, count = evidence.value, evidence.bound, evidence.count
    passes = False
    if evidence.gap is not None or value is None or bound is None:
        why = evidence.gap or "nothing was measured"
    elif count < policy.min_items:
        why = f"{count} items are too few to judge it; the policy asks for {policy.min_items}"
    else:
        passes = at_most(bound, threshold) if is_ceiling else at_least(bound, threshold)
        side, limit = ("upper", "at most") if is_ceiling else ("lower", "at least")
        why = (
            f"{value:.4f} over {count} items, {side} bound {bound:.4f} "
            f"{'is' if passes else 'is not'} {limit} {threshold:g}"
        )
    label = name if group == OVERALL else f"{group}/{name}"
    return Criterion(
        name=name,
        group=group,
        value=value,
        bound=bound,
        threshold=threshold,
        count=count,
        verdict="pass" if passes else "fail",
        why=f"{label}: {why}",
    )
