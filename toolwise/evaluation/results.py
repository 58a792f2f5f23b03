"""What an evaluation leaves: scores, metrics and whole rollouts, all or none."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolwise.agent.openai_engine import ServedModel
from toolwise.data import Task
from toolwise.evaluation.metrics import (
    METRIC_VERSION,
    RolloutScore,
    solvable_items,
    summarise,
    write_scores,
)
from toolwise.evaluation.rollouts import benchmark_of, json_line
from toolwise.evaluation.settings import EvaluationSettings
from toolwise.evaluation.work_file import Identity
from toolwise.evaluation.worker import AnsweredBatch
from toolwise.storage import atomic_directory

KEPT_PER_ABILITY = 6
"""Items of each ability whose greedy rollouts are kept whole: the same for every checkpoint."""


def kept_items(tasks: Sequence[Task]) -> frozenset[str]:
    by_ability: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        by_ability[task.ability].append(task.id)
    return frozenset(item for ids in by_ability.values() for item in ids[:KEPT_PER_ABILITY])


def publish_results(
    out_dir: Path,
    tasks: Sequence[Task],
    batches: Sequence[AnsweredBatch],
    identity: Identity,
    settings: EvaluationSettings,
    served: ServedModel | None = None,
) -> None:
    """Write `scores.jsonl`, `metrics.json` and `samples.jsonl`, as `evaluate` describes them.

    Args:
        out_dir: what gets them.
        tasks: the items, without their images.
        batches: all answers, in the order they were planned.
        identity: of which evaluation they are.
        settings: how they were given.
        served: the model, where it is behind a server.
    """
    scores = [row for batch in batches for row in batch.scores]
    metrics = {
        "greedy": summarise(scores, "greedy"),
        "sampled": summarise(scores, "sampled"),
        "items": len(tasks),
        "solvable": sum(solvable_items(scores).values()),
        "checkpoint": identity.model,
        "benchmark": identity.benchmark,
        "corpus": identity.corpus,
        "sources": Counter(task.source for task in tasks),
        "metric_version": METRIC_VERSION,
        "seed": identity.seed,
        "settings": settings.model_dump(),
        "versions": identity.versions,
        **_published_score(tasks, scores),
    }
    if served is not None:
        metrics["model"] = served.model_dump(include={"base_url", "model"})
    with atomic_directory(out_dir) as room:
        write_scores(room / "scores.jsonl", scores)
        (room / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        with (room / "samples.jsonl").open("w", encoding="utf-8") as file:
            for sample in _samples(tasks, batches):
                file.write(json_line(sample))


def _published_score(
    tasks: Sequence[Task], scores: Sequence[RolloutScore]
) -> dict[str, dict[str, Any]]:
    """The greedy answers as their benchmark's authors put them together, under `published`.

    Empty where the items are not those of one published benchmark.
    """
    names = {task.source for task in tasks}
    benchmark = benchmark_of(names.pop()) if len(names) == 1 else None
    if benchmark is None:
        return {}
    by_id = {task.id: task for task in tasks}
    greedy = [row for row in scores if row.mode == "greedy"]
    return {
        "published": {
            "name": tasks[0].source,
            "title": benchmark.title,
            "url": benchmark.url,
            "figures": benchmark.aggregate([(by_id[row.task_id], row) for row in greedy]),
            "scored_by": dict(sorted(Counter(row.scored_by for row in greedy).items())),
        }
    }


def _samples(tasks: Sequence[Task], batches: Sequence[AnsweredBatch]) -> Iterator[dict[str, Any]]:
    """The kept items, and where none of those calls (or abstains) the first that does."""
    kept = kept_items(tasks)
    found = [sample for batch in batches for sample in batch.samples]
    chosen = [sample for sample in found if sample["task_id"] in kept]
    yield from chosen
    kinds = {(sample["ability"], sample["tool_calls"] > 0) for sample in chosen}
    for sample in found:
        kind = (sample["ability"], sample["tool_calls"] > 0)
        if kind not in kinds:
            kinds.add(kind)
            yield sample
