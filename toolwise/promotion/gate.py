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

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolwise.errors import InputError
from toolwise.evaluation.metrics import (
    OVERALL,
    Metric,
    RolloutScore,
    ToolsOnMode,
    item_means,
    summarise,
)
from toolwise.evaluation.statistics import paired_bootstrap, wilson_interval
from toolwise.storage import atomic_file

Reference = Literal["champion", "baseline"]

_ROUNDING = 1e-9
"""A bound that equals its threshold passes, whatever the last bit of a float says."""


class GatePolicy(BaseModel):
    """What a checkpoint has to prove before it is promoted.

    Attributes:
        mode: which tools-on answers are judged.
        redundant_call_rate_max: the upper bound of `redundant_call_rate` must not exceed it.
        necessary_call_rate_min: the lower bound of `necessary_call_rate` must reach it.
        accuracy_drop_max: the upper bound of the accuracy lost against the champion (without one:
            against the stage before) must not exceed it.
        confidence: of the two-sided Wilson intervals and of the one-sided bootstrap bound.
        min_items: a criterion that rests on fewer items fails.
        per_ability: judge every ability by itself as well as all together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: ToolsOnMode = "greedy"
    redundant_call_rate_max: float = Field(0.05, ge=0, le=1)
    necessary_call_rate_min: float = Field(0.90, ge=0, le=1)
    accuracy_drop_max: float = Field(0.02, ge=0, le=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    min_items: int = Field(50, ge=1)
    per_ability: bool = False

    @classmethod
    def load(cls, path: Path) -> GatePolicy:
        """The policy in a YAML file.

        Raises:
            InputError: the file cannot be read or a field is wrong; names file and fields.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except OSError as error:
            raise InputError(f"{path}: the policy cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise InputError(f"{path}: the policy is not YAML: {error}") from error
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'policy'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise InputError(f"{path}: {faults}") from None


class Criterion(BaseModel):
    """One thing the policy asks, and how it came out.

    Attributes:
        name: `redundant_call_rate`, `necessary_call_rate` or `accuracy_drop`.
        group: `overall` or an ability.
        value: the point value; None where it could not be measured.
        bound: the end of its interval that is held against the threshold.
        threshold: from the policy.
        count: items it rests on.
        verdict: `pass` or `fail`.
        why: the comparison in words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    group: str
    value: float | None
    bound: float | None
    threshold: float
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
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Literal["promote", "reject"]
    reference: Reference | None
    policy: GatePolicy
    criteria: tuple[Criterion, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was rejected: the failed criteria in words, none after a promotion."""
        return tuple(c.why for c in self.criteria if c.verdict == "fail")

    def explain(self) -> str:
        """The decision and each criterion, a line each."""
        verdicts = [f"  {c.verdict:<4}  {c.why}" for c in self.criteria]
        return "\n".join([f"{self.decision} ({self.policy.mode} answers)", *verdicts])

    def write(self, path: Path) -> None:
        """Write `decision.json`."""
        with atomic_file(path) as partial:
            partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Decision:
        """The decision at `path`; `InputError` where it is not one."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
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
    """Hold `challenger` against the policy.

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
    gap = _counterfactual_gap(challenger, policy.mode)
    for group, metrics in summarise(challenger, policy.mode).items():
        if group != OVERALL and not policy.per_ability:
            continue
        for name in ("redundant_call_rate", "necessary_call_rate"):
            yield _judge(policy, group, name, _call_rate(policy, name, metrics[name], gap))
        drop = _accuracy_drop(policy, group, challenger, compared, reference)
        yield _judge(policy, group, "accuracy_drop", drop)


def _counterfactual_gap(scores: Sequence[RolloutScore], mode: ToolsOnMode) -> str | None:
    """What keeps call rates from meaning anything: every item needs the same k tools-off rows."""
    tools_on = {row.task_id for row in scores if row.mode == mode}
    tools_off = Counter(row.task_id for row in scores if row.mode == "tools_off")
    if not tools_on:
        return f"no {mode} answers"
    if not tools_off:
        return "no tools-off answers, so which items need a tool is not known"
    most = max(tools_off.values())
    uneven = (tools_on ^ tools_off.keys()) | {i for i, k in tools_off.items() if k < most}
    if uneven:
        return (
            f"{len(uneven)} items lack {mode} answers or have fewer tools-off answers than the "
            f"rest (first: {min(uneven)})"
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
        difference = paired_bootstrap(
            accuracy(challenger), accuracy(compared), confidence=policy.confidence
        )
    except InputError as error:
        return _Evidence(gap=f"cannot be compared with the {reference}: {error}")
    # Subtracting from zero keeps "no difference" from reading -0.
    return _Evidence(0.0 - difference.value, 0.0 - difference.lower_bound, difference.count)


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
        margin = threshold - bound if is_ceiling else bound - threshold
        passes = margin >= -_ROUNDING
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
