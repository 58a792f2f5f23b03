"""Curation of prompts for reinforcement learning: keep those that have something to teach.

See docs/curation.md for the rule and for where it departs from the paper.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from toolwise.agent import Engine, Limits, Rollout, Sampling, run_agent
from toolwise.curation.deduplication import (
    BenchmarkIndex,
    DeduplicationSettings,
    benchmark_files,
    read_benchmarks,
)
from toolwise.curation.filtering import Filter, Filtering, Progress, by_rule
from toolwise.curation.judge import PROMPTS, JudgePanel, JudgeSettings, LlmJudge
from toolwise.curation.mixture import METIS, largest_mixture
from toolwise.curation.report import CurationReport, count, count_filters
from toolwise.curation.samples import chosen_rows, sample
from toolwise.curation.spool import Spool
from toolwise.curation.verdicts import Verdict, VerdictLog
from toolwise.curation.workbench import Workbench, content_stamp, open_workbench
from toolwise.data import CorruptImage, Task, grade
from toolwise.data.grading import normalise
from toolwise.data.parquet import Rejects, iterate_tasks, write_tasks
from toolwise.errors import InputError
from toolwise.storage import atomic_directory
from toolwise.tools import Tool
from toolwise.tools.sandbox.contract import Isolation
from toolwise.tools.search.settings import SearchSettings

FilterName = Literal["image", "question", "ability", "benchmarks", "ambiguity", "rollouts"]
FILTERS: tuple[FilterName, ...] = get_args(FilterName)
"""In the order they run, whatever the order they are asked for in."""

ALIKE = "all rollouts are right with the same number of calls"

_PLACEHOLDER = re.compile(r"<image>")
_MENTION = re.compile(
    r"\b(?:this|the|given|shown|above|following) (?:image|picture|photo|photograph|figure)s?\b",
    re.IGNORECASE,
)


def _mixture_unless_numbers(settings: dict[str, Any]) -> dict[str, float] | None:
    return None if settings.get("prompts") else METIS


class RlCurationSettings(BaseModel):
    """Which prompts to keep for reinforcement learning.

    Args:
        filters: which to run; all of them by default.
        generations: G rollouts of the cold-start model per prompt, at temperature 1.
        keep_rule: `either` keeps a prompt when the accuracy or the efficiency reward varies
            within its rollouts; `pass_rate` only when some are right and some wrong (the paper's).
        prompts: how many to keep of each ability; rollouts stop once there are enough.
        mixture: shares of the result by ability, where `prompts` is not given; the largest result
            that has them is kept, and abilities without a share are dropped. By default the
            paper's 45% perception, 36% search, 19% math; null keeps all that qualify.
        rollouts: how many to spend at most.
        batch_size: conversations per generation.
        max_tokens: limit per turn.
        max_turns: assistant turns per rollout.
        isolation: lowest sandbox level accepted.
        search: the search tools; as the profile has it.
        deduplicate: drops what a benchmark asks; by default nothing is compared.
        judge: a model that judges whether questions are ambiguous, after the rules.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: tuple[FilterName, ...] = FILTERS
    generations: int = Field(8, ge=2)
    keep_rule: Literal["either", "pass_rate"] = "either"
    prompts: int | None = Field(None, ge=1)
    mixture: dict[str, PositiveFloat] | None = Field(default_factory=_mixture_unless_numbers)
    rollouts: int | None = Field(None, ge=1)
    batch_size: int = Field(256, ge=1)
    max_tokens: int = Field(512, ge=1)
    max_turns: int = Field(4, ge=1)
    isolation: Isolation = Isolation.BUBBLEWRAP
    search: SearchSettings | None = None
    deduplicate: DeduplicationSettings | None = None
    judge: JudgeSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.filters:
            raise ValueError(f"`filters` names none; there are: {', '.join(FILTERS)}")
        if self.prompts and self.mixture:
            raise ValueError("give either `prompts` or `mixture`")
        return self


def curate_rl(
    model_dir: str | Path | None,
    tasks: str | Path,
    corpus: str | Path | None,
    out_dir: Path,
    settings: RlCurationSettings,
    seed: int,
    *,
    benchmark: str | Path | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
    tools: Sequence[Tool] | None = None,
) -> CurationReport:
    """Filter prompts by rule, then by rollouts; a killed run goes on from the verdicts it has.

    Args:
        model_dir: the cold-start model; only `rollouts` needs it.
        tasks: prompts (Parquet).
        corpus: what `text_search` searches.
        out_dir: gets `curated.parquet`, `rejected.parquet` (with `reason`), `report.json`,
            `report.md`, `report.html`, and `rejects.jsonl`, `waiting.parquet` where there are any;
            all or none. Prompts that were not needed any more are in none of them, but counted.
        settings: what to keep.
        seed: decides the order in which prompts are tried, and the rollouts.
        benchmark: held-out tasks (Parquet); read only where `settings.deduplicate` is given.
        progress: told rows done, rows in all, the filter's name.
        engine: the model where it is served elsewhere (default: `model_dir` in process).
        tools: instead of the python sandbox and `text_search` over `corpus`.

    Raises:
        InputError: the input cannot be read, or no prompt qualifies.
        BackendError: sandbox, search, model or judge failed; nothing is decided by that.
    """
    roll_out = "rollouts" in settings.filters
    if roll_out and model_dir is None and engine is None:
        raise InputError("the filter `rollouts` asks the model and none is given (--model)")
    with open_workbench(
        model_dir if roll_out else None,
        tasks,
        corpus,
        out_dir,
        settings.isolation,
        seed,
        engine,
        tools if roll_out else (),
        settings.search,
    ) as bench:
        curation = _RlCuration(bench, settings, benchmark, progress)
        asyncio.run(curation.filter())
        return curation.publish(out_dir)


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


class _RlCuration:
    def __init__(
        self,
        bench: Workbench,
        settings: RlCurationSettings,
        benchmark: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.bench = bench
        self.settings = settings
        self.benchmark = benchmark
        self.progress = progress
        self.rejects = Rejects(bench.verdicts / "rejects.jsonl")
        self.ids: list[str] = []
        self.abilities: list[str] = []
        self.sources: list[str] = []
        self.tasks = Spool(self.read(), bench.verdicts)
        self.filtering = Filtering(
            lambda: self.tasks, len(self.tasks), bench.verdicts, bench.identity, progress
        )
        self.waiting: list[int] = []
        judged = settings.judge if "ambiguity" in settings.filters else None
        self.judge = LlmJudge(judged, bench.verdicts) if judged else None
        self.kept: list[int] = []
        self.rollouts: VerdictLog | None = None

    def read(self) -> Iterator[Task]:
        for task in iterate_tasks(self.bench.source, self.rejects):
            self.ids.append(task.id)
            self.abilities.append(task.ability)
            self.sources.append(task.source)
            yield task

    async def filter(self) -> None:
        for which in self.filters():
            await self.filtering.run(which)
        if self.judge:
            panel = JudgePanel(self.judge.task, self.judge.settings)
            identity = f"{panel.settings.model} {(PROMPTS / 'rl_judge.md').read_text()}"
            judged = Filter("ambiguity", identity, lambda _: True, panel.decide, 64)
            self.waiting = await self.filtering.run(judged)
            panel.settle(self.waiting)
        queues: dict[str, list[int]] = defaultdict(list)
        out = set(self.waiting)
        for number in sorted(
            (n for n, _ in self.filtering.survivors() if n not in out), key=self.rank
        ):
            queues[self.abilities[number]].append(number)
        kept = await self.roll_out(queues) if "rollouts" in self.settings.filters else queues
        enough = self.targets({ability: len(numbers) for ability, numbers in kept.items()})
        self.kept = sorted(n for a, numbers in kept.items() for n in numbers[: enough[a]])

    def filters(self) -> Iterator[Filter[Task]]:
        """Those that need no model, as far as they are asked for."""
        s = self.settings
        if "image" in s.filters:
            yield image_filter()
        if "question" in s.filters:
            yield question_filter(self.tasks)
        if "ability" in s.filters and s.mixture:
            yield ability_filter(s.mixture)
        if "benchmarks" in s.filters and s.deduplicate:
            own = [] if self.benchmark is None else [self.benchmark]
            work = self.bench.verdicts
            yield benchmark_filter(s.deduplicate, own, work, self.progress)

    async def roll_out(self, queues: dict[str, list[int]]) -> dict[str, list[int]]:
        """Try prompts, abilities in turn, until there are enough of each or none are left.

        Returns:
            Those with something to teach, by ability, in the order they were tried.
        """
        s = self.settings
        candidates = sum(map(len, queues.values()))
        identity = f"{s.generations} {s.batch_size} {s.max_tokens} {s.max_turns}"
        wanted = f"{s.keep_rule} {s.prompts} {s.mixture}"
        log = self.rollouts = self.filtering.open_log("rollouts", f"{identity} {wanted}")
        kept: dict[str, list[int]] = {ability: [] for ability in queues}
        spent = 0
        while batch := self.next_batch(queues, kept, spent):
            if not all(number in log for number in batch):
                started = time.perf_counter()
                verdicts = await self.try_prompts(batch)
                log.record(verdicts, time.perf_counter() - started)
            spent += len(batch) * s.generations
            for number in batch:
                if log[number].keep:
                    kept[self.abilities[number]].append(number)
            if self.progress:
                target = len(kept) * s.prompts if s.prompts else candidates
                done = sum(map(len, kept.values())) if s.prompts else spent // s.generations
                self.progress(min(done, target), target, "rollouts")
        return kept

    def rank(self, number: int) -> bytes:
        return self.bench.rank(number, self.ids[number])

    def targets(self, available: Mapping[str, int]) -> dict[str, int]:
        """How many prompts of each ability make the result, of so many there may be."""
        s = self.settings
        if s.mixture:
            return largest_mixture(available, s.mixture)
        return {ability: s.prompts or number for ability, number in available.items()}

    def next_batch(
        self, queues: dict[str, list[int]], kept: Mapping[str, list[int]], spent: int
    ) -> list[int]:
        """Take the next prompts off the queues of the abilities that are still short.

        Abilities take turns, as often as their share of the mixture says where there is one.
        """
        s = self.settings
        room = max(1, s.batch_size // s.generations)
        if s.rollouts is not None:
            room = min(room, (s.rollouts - spent) // s.generations)
        targets = self.targets({a: len(kept[a]) + len(queues[a]) for a in queues})
        short = [a for a in queues if len(kept[a]) < targets[a]]
        shares = s.mixture or dict.fromkeys(queues, 1.0)
        batch: list[int] = []
        taken = dict.fromkeys(short, 0)
        while len(batch) < room and (left := [a for a in short if queues[a]]):
            ability = min(left, key=lambda a: (taken[a] + 1) / shares[a])
            taken[ability] += 1
            batch.append(queues[ability].pop(0))
        return batch

    async def try_prompts(self, batch: Sequence[int]) -> dict[int, Verdict]:
        s = self.settings
        rollouts = await run_agent(
            self.bench.engine,
            [self.tasks[number] for number in batch for _ in range(s.generations)],
            self.bench.tools,
            sampling=Sampling(
                temperature=1.0,
                max_tokens=s.max_tokens,
                seed=self.bench.batch_seed("rollouts", batch[0]),
            ),
            limits=Limits(max_turns=s.max_turns),
        )
        groups = [rollouts[i : i + s.generations] for i in range(0, len(rollouts), s.generations)]
        return {
            number: judge_group(group, s.keep_rule)
            for number, group in zip(batch, groups, strict=True)
        }

    def publish(self, out_dir: Path) -> CurationReport:
        """Write the prompts, those dropped with their reasons, and the account."""
        if not self.kept:
            counts = count_filters(self.filtering.logs, self.abilities, self.sources)
            raise InputError(
                f"{self.bench.source}: no prompt qualifies; dropped: "
                + ", ".join(f"{c.name} {c.dropped} of {c.seen}" for c in counts)
            )
        dropped = {
            number: f"{by[0]}: {by[1].reason}"
            for number in range(len(self.tasks))
            if (by := self.filtering.dropped_by(number))
        }
        report = CurationReport(
            step="rl",
            seed=self.bench.seed,
            settings=self.settings.model_dump(),
            read=len(self.tasks),
            unreadable=self.rejects.count,
            waiting=len(self.waiting),
            not_needed=len(self.tasks) - len(self.kept) - len(dropped) - len(self.waiting),
            kept=count(self.abilities[number] for number in self.kept),
            composition=count(self.kind(number) for number in self.kept),
            filters=count_filters(self.filtering.logs, self.abilities, self.sources),
            figures=self.figures(),
            notes=[self.judge.account()] if self.judge else [],
            read_by_source=count(self.sources),
            kept_by_source=count(self.sources[number] for number in self.kept),
            samples=[
                sample(self.tasks[number], *by)
                for number, by in chosen_rows(self.filtering.logs).items()
            ],
        )
        with atomic_directory(out_dir) as room:
            write_tasks(room / "curated.parquet", map(self.kept_task, self.kept))
            rejected = (self.tasks[number] for number in dropped)
            write_tasks(room / "rejected.parquet", rejected, dropped.values())
            if self.waiting:
                write_tasks(room / "waiting.parquet", (self.tasks[n] for n in self.waiting))
            if self.rejects.count:
                shutil.copy(self.rejects.path, room / "rejects.jsonl")
            report.write(room)
        return report

    def kind(self, number: int) -> str:
        if self.rollouts is None:
            return "not tried"
        detail = self.rollouts[number].detail
        mixed = 0 < detail["accuracy"] < 1
        return "some right, some wrong" if mixed else "all right, differing numbers of calls"

    def kept_task(self, number: int) -> Task:
        task = self.tasks[number]
        if self.rollouts is None:
            return task
        return replace(task, metadata={**task.metadata, "rollouts": self.rollouts[number].detail})

    def figures(self) -> dict[str, dict[str, float]]:
        """Means over the prompts tried, by ability."""
        tried: dict[str, list[dict[str, float]]] = defaultdict(list)
        for number, verdict in self.rollouts.items() if self.rollouts else ():
            tried[self.abilities[number]].append(verdict.detail)
        return {
            ability: {
                "tried": len(details),
                **{
                    name: round(sum(d[name] for d in details) / len(details), 4)
                    for name in ("accuracy", "tool_call_rate", "calls_per_rollout")
                },
            }
            for ability, details in sorted(tried.items())
        }


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


def judge_group(rollouts: Sequence[Rollout], keep_rule: str) -> Verdict:
    """Whether one prompt's rollouts have something to teach.

    `accuracy` varies where some are right and some wrong; `1/(T+1)` of the right ones (0 of the
    wrong) varies there too, and where all are right with differing numbers T of calls.
    """
    right = [grade(rollout.task, rollout.answer) for rollout in rollouts]
    calls = [rollout.tool_calls for rollout in rollouts]
    mixed = 0 < sum(right) < len(right)
    differing = all(right) and len(set(calls)) > 1
    detail = {
        "accuracy": sum(right) / len(right),
        "tool_call_rate": sum(t > 0 for t in calls) / len(calls),
        "calls_per_rollout": sum(calls) / len(calls),
    }
    if mixed or (differing and keep_rule == "either"):
        return Verdict(True, detail=detail)
    if not any(right):
        return Verdict(False, "all rollouts are wrong", detail)
    return Verdict(False, "all rollouts are right" if differing else ALIKE, detail)
