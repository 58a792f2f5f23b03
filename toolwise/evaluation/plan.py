"""Which answers an evaluation gives, cut into batches that do not depend on each other.

No batch mixes benchmarks, so that each benchmark's share can be answered on a machine of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby

from toolwise.data import Task
from toolwise.evaluation.metrics import Mode
from toolwise.evaluation.settings import EvaluationSettings
from toolwise.evaluation.worker import AnswerBatch


def plan(tasks: Sequence[Task], settings: EvaluationSettings, seed: int) -> list[AnswerBatch]:
    """Every answer to be given, in batches of items of one kind where that can be had."""
    batches: list[AnswerBatch] = []
    for mode, answers in _answers(tasks, settings):
        place = 0
        for _, of_source in groupby(answers, key=lambda answer: tasks[answer[0]].source):
            group = tuple(of_source)
            for start in range(0, len(group), settings.batch_size):
                part = group[start : start + settings.batch_size]
                batches.append(AnswerBatch(len(batches), mode, part, _seed(seed, mode, place)))
                place += 1
    return batches


def source_of(batch: AnswerBatch, tasks: Sequence[Task]) -> str:
    """The benchmark a batch of `plan` answers."""
    return tasks[batch.answers[0][0]].source


def plan_single(
    tasks: Sequence[Task], settings: EvaluationSettings, seed: int
) -> list[AnswerBatch]:
    """Every answer to be given, each alone, with a seed that is the item's own."""
    batches: list[AnswerBatch] = []
    for mode, answers in _answers(tasks, settings):
        for item, sample in answers:
            own = _seed(seed, mode, tasks[item].id, sample)
            batches.append(AnswerBatch(len(batches), mode, ((item, sample),), own))
    return batches


def _answers(
    tasks: Sequence[Task], settings: EvaluationSettings
) -> Iterator[tuple[Mode, list[tuple[int, int]]]]:
    """Of each mode, the answers (item, sample), items of one source and ability together."""
    by_kind = sorted(range(len(tasks)), key=lambda item: (tasks[item].source, tasks[item].ability))
    samples: dict[Mode, int] = {
        "greedy": 1,
        "sampled": settings.samples,
        "tools_off": settings.counterfactual_samples,
    }
    for mode, count in samples.items():
        yield mode, [(item, sample) for item in by_kind for sample in range(count)]


def _seed(*identity: object) -> int:
    """31 bits that follow from `identity`."""
    digest = hashlib.sha256(" ".join(map(str, identity)).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
