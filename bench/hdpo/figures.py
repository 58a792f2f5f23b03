"""From what the runs recorded to what is reported: rates with intervals, curves, comparisons."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from bench.hdpo.arms import Arm
from bench.hdpo.scale import Scale
from toolwise.evaluation.metrics import (
    OVERALL,
    Mode,
    RolloutScore,
    Summary,
    item_means,
    solvable_items,
    summarise,
)
from toolwise.statistics import paired_bootstrap

METRICS = ("accuracy", "redundant_call_rate", "necessary_call_rate")
THRESHOLDS = (0.5, 0.05)
"""Of the redundant rate: half way, and cured."""
WINDOW = 5
"""Steps over which the redundant rate of the rollouts is averaged before it is compared."""
PAPERS, FAST = "hdpo 0.15", "hdpo 0.3"
"""What arms are compared with: the paper's setting, and one about as fast as a coupled reward."""

Record = tuple[Arm, int, dict[str, Any]]
"""An arm, the seed, and what `training.train_arm` returned."""


def first_stays_under(
    part: Sequence[int], whole: Sequence[int], threshold: float, window: int
) -> int | None:
    """The first step from which the rate stays under the threshold to the end; None if none does.

    The rate at a step is that of the `window` steps that end there, so no step before the window
    is full counts, and neither does one whose window has no data.

    Args:
        part: of each step, how many did.
        whole: of each step, how many might have.
        threshold: the rate has to be lower.
        window: steps.

    Returns:
        The step, counted from 1.
    """
    first = None
    for step in range(window, len(part) + 1):
        count = sum(whole[step - window : step])
        if count and sum(part[step - window : step]) < threshold * count:
            first = first or step
        else:
            first = None
    return first


def collect(
    records: Sequence[Record], known: dict[str, dict[str, Any]], scale: Scale
) -> dict[str, Any]:
    """The study's results, as `bench/results/hdpo_arms.json` holds them."""
    by_arm: dict[str, list[Record]] = {}
    for record in records:
        by_arm.setdefault(record[0].label, []).append(record)
    scores = {label: _pooled(runs) for label, runs in by_arm.items()}
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "scale": scale.model_dump(),
        "starts": {
            start: {
                "prompts": len(prompts),
                "solvable": sum(p["solvable"] for p in prompts.values()),
                "mixed": sum(p["mixed"] for p in prompts.values()),
                "mixed_solvable": sum(p["mixed"] and p["solvable"] for p in prompts.values()),
                "called_on_solvable": fmean(p["called"] for p in prompts.values() if p["solvable"]),
            }
            for start, prompts in known.items()
        },
        "arms": [_arm(runs, scores, scale) for runs in by_arm.values()],
    }


def _arm(
    runs: Sequence[Record], scores: dict[str, list[RolloutScore]], scale: Scale
) -> dict[str, Any]:
    arm = runs[0][0]
    own = scores[arm.label]
    steps = [run["steps"] for _, _, run in runs]
    crossings = {
        str(threshold): [
            first_stays_under(
                [s["redundant"] for s in run], [s["solvable"] for s in run], threshold, WINDOW
            )
            for run in steps
        ]
        for threshold in THRESHOLDS
    }
    return {
        "regime": arm.regime,
        "name": arm.name,
        "seeds": [seed for _, seed, _ in runs],
        "cpu_seconds": round(fmean(run["cpu_seconds"] for _, _, run in runs), 1),
        **{mode: _chosen(summarise(own, mode)) for mode in ("greedy", "sampled")},
        "abilities": {
            ability: _only(metrics)
            for ability, metrics in summarise(own, "sampled").items()
            if ability != OVERALL
        },
        "by_seed": [
            {
                mode: {
                    k: v["value"] for k, v in _chosen(summarise(_scores(seed, run), mode)).items()
                }
                for mode in ("greedy", "sampled")
            }
            for _, seed, run in runs
        ],
        "rollouts_until_under": {
            threshold: [None if step is None else step * scale.rollouts_per_step for step in found]
            for threshold, found in crossings.items()
        },
        "against": {
            name: _difference(own, scores[label])
            for name, label in _references(arm).items()
            if label in scores and label != arm.label
        },
        "curve": {
            "rollouts": [(i + 1) * scale.rollouts_per_step for i in range(len(steps[0]))],
            "redundant": _rates(steps, "redundant", "solvable"),
            "necessary": _rates(steps, "necessary", "unsolvable"),
            **{name: _means(steps, name) for name in ("right", "q", "signal", "mixed")},
        },
    }


def _references(arm: Arm) -> dict[str, str]:
    """Labels of the arms it is compared with, by what the comparison is called."""
    found = {PAPERS: f"{arm.regime}: {PAPERS}"}
    if arm.changes.get("variant") in ("coupled", "eapo"):
        found[FAST] = f"{arm.regime}: {FAST}"
    if arm.bonus:  # HDPO has no such bonus: its arms are main's
        found[f"{FAST} of main"] = f"main: {FAST}"
        found[f"{arm.name} of main"] = f"main: {arm.name}"
    return found


def _scores(seed: int, run: dict[str, Any]) -> list[RolloutScore]:
    """A run's scores; an item answered by the models of two seeds is two items."""
    return [
        RolloutScore(f"{seed}/{item}", ability, mode, sample, bool(correct), calls, 0, 0, 0, 0, "")
        for item, ability, mode, sample, correct, calls in run["scores"]
    ]


def _pooled(runs: Sequence[Record]) -> list[RolloutScore]:
    return [row for _, seed, run in runs for row in _scores(seed, run)]


def _chosen(summary: Summary) -> dict[str, Any]:
    return _only(summary[OVERALL])


def _only(metrics: Any) -> dict[str, Any]:
    return {name: metrics[name] for name in METRICS}


def _difference(own: list[RolloutScore], reference: list[RolloutScore]) -> dict[str, Any]:
    """Sampled rates minus the reference arm's, over what both answered, paired by seed and item."""
    solvable = [solvable_items(scores) for scores in (own, reference)]
    both = {
        value: {
            item
            for item in solvable[0].keys() & solvable[1].keys()
            if solvable[0][item] is solvable[1][item] is value
        }
        for value in (True, False)
    }
    among = {
        "accuracy": None,
        "redundant_call_rate": both[True],
        "necessary_call_rate": both[False],
    }
    found = {}
    for metric, items in among.items():
        sides = [_item_values(scores, metric, items) for scores in (own, reference)]
        shared = sides[0].keys() & sides[1].keys()
        if not shared:
            found[metric] = None
            continue
        pairs = [{item: side[item] for item in sorted(shared)} for side in sides]
        difference = paired_bootstrap(*pairs)
        found[metric] = {
            "value": difference.value,
            "low": difference.low,
            "high": difference.high,
            "count": difference.count,
        }
    return found


def _item_values(
    scores: list[RolloutScore], metric: str, items: set[str] | None
) -> dict[str, float]:
    mode: Mode = "sampled"
    rows = [s for s in scores if s.mode == mode and (items is None or s.task_id in items)]
    if metric == "accuracy":
        return item_means(rows, lambda row: row.correct)
    return item_means(rows, lambda row: row.tool_calls > 0)


def _rates(steps: Sequence[Sequence[dict[str, Any]]], part: str, whole: str) -> list[float | None]:
    """Of each step, over the seeds and the window that ends there."""
    rates: list[float | None] = []
    for end in range(1, len(steps[0]) + 1):
        window = [step for run in steps for step in run[max(0, end - WINDOW) : end]]
        count = sum(step[whole] for step in window)
        rates.append(round(sum(step[part] for step in window) / count, 4) if count else None)
    return rates


def _means(steps: Sequence[Sequence[dict[str, Any]]], name: str) -> list[float]:
    """Of each step, over the seeds and the window that ends there."""
    return [
        round(fmean(s[name] for run in steps for s in run[max(0, end - WINDOW) : end]), 4)
        for end in range(1, len(steps[0]) + 1)
    ]
