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

    Raises:
        InputError: the two were not measured on the same items.
    """
    groups = [OVERALL, *sorted({row.ability for row in after})]
    return {
        mode: {
            group: {
                name: dataclasses.asdict(
                    paired_bootstrap(
                        item_means(_rows(after, mode, group), value),
                        item_means(_rows(before, mode, group), value),
                    )
                )
                for name, value in _COMPARED.items()
            }
            for group in groups
        }
        for mode in MODE_LABELS
    }


def _rows(scores: Sequence[RolloutScore], mode: str, group: str) -> list[RolloutScore]:
    return [row for row in scores if row.mode == mode and group in (OVERALL, row.ability)]
