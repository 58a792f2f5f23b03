"""What a person reads for each metric and each way of sampling."""

from __future__ import annotations

from typing import NamedTuple

MODE_LABELS = {"greedy": "Greedy", "sampled": "Sampled at temperature 1"}


class MetricLook(NamedTuple):
    """How one metric is shown: its label, whether it is a share, its digits, what it counts."""

    label: str
    meaning: str
    is_share: bool = True
    digits: int = 2

    def short(self, value: float) -> str:
        """`1.7%` for a share, `0.52` otherwise."""
        return f"{100 * value:.1f}%" if self.is_share else f"{value:.{self.digits}f}"


METRICS = {
    "accuracy": MetricLook("Accuracy", "right answers"),
    "tool_call_rate": MetricLook("Tool-call rate", "answers with at least one tool call"),
    "redundant_call_rate": MetricLook(
        "Redundant calls", "answers with a call, among items the model solves without tools"
    ),
    "necessary_call_rate": MetricLook(
        "Necessary calls", "answers with a call, among items it does not solve without tools"
    ),
    "wasted_calls": MetricLook("Wasted calls", "calls on solvable items, of all calls"),
    "tool_error_rate": MetricLook("Tool errors", "calls that ended in an error, of all calls"),
    "calls_per_rollout": MetricLook("Calls per answer", "mean number of calls", False),
    "tokens_per_answer": MetricLook(
        "Tokens per answer", "mean number of tokens the model wrote", False, 1
    ),
    "seconds_per_answer": MetricLook(
        "Seconds per answer", "mean time in model and tools, within a batch", False, 3
    ),
    "tool_seconds_per_answer": MetricLook(
        "Tool seconds per answer", "the part of it spent in tools", False, 3
    ),
}
"""Every metric of `toolwise.evaluation.metrics.summarise`, in the order shown."""
