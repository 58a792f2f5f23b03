"""What one stage changed against the one before it, item by item."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from toolwise.evaluation.labels import MODE_LABELS
from toolwise.evaluation.metrics import OVERALL, RolloutScore, item_means
from toolwise.statistics import paired_bootstrap

_COMPARED: dict[str, Callable[[RolloutScore], float]] = {
    "accuracy": lambda row: row.correct,
    "tool_call_rate": lambda row: row.tool_calls > 0,
    "calls_per_rollout": lambda row: row.tool_calls,
}


def paired_changes(
    after: Sequence[RolloutScore], before: Sequence[RolloutScore]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Mode → group → metric → mean of after − before over the same items, with 95% intervals.

    A group without answers in a mode (`samples: 0`) is left out of that mode.

    Raises:
        InputError: the two were not measured on the same items.
    """
    groups = [OVERALL, *sorted({row.ability for row in after})]
    changes: dict[str, dict[str, dict[str, Any]]] = {mode: {} for mode in MODE_LABELS}
    for mode in MODE_LABELS:
        for group in groups:
            ours, theirs = (_rows(scores, mode, group) for scores in (after, before))
            if ours or theirs:
                changes[mode][group] = _compared(ours, theirs)
    return changes


def _compared(
    after: Sequence[RolloutScore], before: Sequence[RolloutScore]
) -> dict[str, dict[str, Any]]:
    return {
        name: dataclasses.asdict(
            paired_bootstrap(item_means(after, value), item_means(before, value))
        )
        for name, value in _COMPARED.items()
    }


def _rows(scores: Sequence[RolloutScore], mode: str, group: str) -> list[RolloutScore]:
    return [row for row in scores if row.mode == mode and group in (OVERALL, row.ability)]
