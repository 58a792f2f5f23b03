"""Filters of prompts for reinforcement learning that need no rollouts: each looks at a task alone.

See docs/curation.md for what they drop and why.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from toolwise.curation.deduplication import (
    BenchmarkIndex,
    DeduplicationSettings,
    benchmark_files,
    read_benchmarks,
)
from toolwise.curation.filtering import Filter, by_rule
from toolwise.curation.judge import JudgePanel
from toolwise.curation.verdicts import Verdict
from toolwise.curation.workbench import content_stamp
from toolwise.data import CorruptImage, Task
from toolwise.data.grading import normalise
from toolwise.errors import InputError
from toolwise.progress import Progress

_PLACEHOLDER = re.compile(r"<image>")
_MENTION = re.compile(
    r"\b(?:this|the|given|shown|above|following) (?:image|picture|photo|photograph|figure)s?\b",
    re.IGNORECASE,
)


def image_filter() -> Filter[Task]:
    """Drops pictures that cannot be read, and questions about ones that are not there."""
    return Filter("image", "", lambda _: True, by_rule(check_images))


def question_filter(tasks: Iterable[Task]) -> Filter[Task]:
    """Drops what has no question or no answer, or conflicting answers among all of `tasks`."""
    conflicting = conflicting_questions(tasks)

    def rule(task: Task) -> Verdict:
        return check_question(task, conflicting)

    return Filter("question", "", lambda _: True, by_rule(rule))


def ability_filter(mixture: Mapping[str, float]) -> Filter[Task]:
    """Drops abilities that have no share of the mixture."""

    def rule(task: Task) -> Verdict:
        wanted = task.ability in mixture
        return Verdict(wanted, "" if wanted else f"no share of the mixture: {task.ability}")

    return Filter("ability", f"{sorted(mixture)}", lambda _: True, by_rule(rule))


def benchmark_filter(
    settings: DeduplicationSettings,
    benchmarks: Iterable[str | Path],
    work: Path,
    progress: Progress | None = None,
) -> Filter[Task]:
    """Drops what a benchmark asks, exactly or nearly.

    Args:
        settings: how near is too near, and more benchmarks.
        benchmarks: Parquet files of tasks, or folders of them.
        work: directory that keeps what was read of them.
        progress: told items done, items in all, "benchmark items".

    Raises:
        InputError: there is no benchmark.
    """
    files = benchmark_files([*benchmarks, *settings.benchmarks])
    if not files:
        raise InputError(
            "`deduplicate` is given, but no benchmark: give one to the step (--benchmark), or name "
            "some in `deduplicate.benchmarks`"
        )

    @cache
    def index() -> BenchmarkIndex:
        return BenchmarkIndex(read_benchmarks(files, work, progress), settings)

    async def decide(rows: Mapping[int, Task]) -> Mapping[int, Verdict]:
        return await by_rule(index().verdict)(rows)

    stamps = [content_stamp(file) for file in files]
    identity = f"{settings.text} {settings.image} {stamps}"
    return Filter("benchmarks", identity, lambda _: True, decide)


def ambiguity_filter(panel: JudgePanel[Task], identity: str) -> Filter[Task]:
    """Drops questions without one answer that can be checked.

    Args:
        panel: the judge.
        identity: what its verdicts depend on.
    """
    return Filter("ambiguity", identity, lambda _: True, panel.decide, 64)


def check_images(task: Task) -> Verdict:
    """Drop tasks whose pictures cannot be decoded, or that speak of ones that are not there."""
    try:
        task.pil_images()
    except CorruptImage as error:
        return Verdict(False, f"corrupt image: {error.reason}")
    placeholders = len(_PLACEHOLDER.findall(task.question))
    if placeholders > len(task.images) or (not task.images and _MENTION.search(task.question)):
        return Verdict(False, "the image it refers to is missing")
    return Verdict(True)


def check_question(task: Task, conflicting: set[bytes]) -> Verdict:
    """Drop tasks without question or answer, or whose question has conflicting answers."""
    if not _PLACEHOLDER.sub("", task.question).strip():
        return Verdict(False, "no question")
    if not any(answer.strip() for answer in task.answer):
        return Verdict(False, "no answer")
    if question_key(task) in conflicting:
        return Verdict(False, "ambiguous: the same question has different answers")
    return Verdict(True)


def conflicting_questions(tasks: Iterable[Task]) -> set[bytes]:
    """Questions (with their pictures and options) given answers that have nothing in common."""
    accepted: dict[bytes, set[str]] = {}
    conflicting: set[bytes] = set()
    for task in tasks:
        key = question_key(task)
        answers = {normalise(answer) for answer in task.answer}
        accepted[key] = accepted.get(key, answers) & answers
        if not accepted[key]:
            conflicting.add(key)
    return conflicting


def question_key(task: Task) -> bytes:
    """What a task asks, as a digest."""
    digest = hashlib.sha256()
    for piece in (normalise(task.question).encode(), *(c.encode() for c in task.choices)):
        digest.update(len(piece).to_bytes(8) + piece)
    for image in task.images:
        digest.update(hashlib.sha256(image).digest())
    return digest.digest()
