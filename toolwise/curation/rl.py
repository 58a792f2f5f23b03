"""Curation of prompts for reinforcement learning: keep those that have something to teach.

See docs/curation.md for the rule and for where it departs from the paper.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from toolwise.agent import Engine
from toolwise.curation.filtering import Filter
from toolwise.curation.judge import PROMPTS, JudgePanel
from toolwise.curation.mixture import targets
from toolwise.curation.report import CurationReport
from toolwise.curation.rl_filters import (
    ability_filter,
    ambiguity_filter,
    benchmark_filter,
    image_filter,
    question_filter,
)
from toolwise.curation.rl_settings import RlCurationSettings
from toolwise.curation.rollout_search import RolloutSearch
from toolwise.curation.run import CurationRun, Outcome
from toolwise.curation.spool import Spool
from toolwise.curation.verdicts import VerdictLog
from toolwise.curation.workbench import Inputs, Workbench, open_workbench
from toolwise.data import Task
from toolwise.data.parquet import Rejects, iterate_tasks, write_tasks
from toolwise.errors import InputError
from toolwise.progress import Progress
from toolwise.tools import Tool

__all__ = ["RlCurationSettings", "curate_rl"]


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
    tries = "rollouts" in settings.filters
    if tries and model_dir is None and engine is None:
        raise InputError("the filter `rollouts` asks the model and none is given (--model)")
    with open_workbench(
        Inputs(tasks, model_dir if tries else None, corpus),
        out_dir,
        seed,
        engine=engine,
        tools=tools if tries else (),
        isolation=settings.isolation,
        search=settings.search,
        vllm=settings.vllm,
    ) as bench:
        return asyncio.run(_RlRun(bench, settings, benchmark, progress).curate(out_dir))


class _RlRun(CurationRun[Task]):
    """Filters that look at a task alone, the judge, then rollouts.

    Args:
        bench: the prompts, the model, tools, and a place for verdicts.
        settings: what to keep.
        benchmark: held-out tasks that prompts are compared with.
        progress: told rows done, rows in all, the filter's name.
    """

    step = "rl"

    def __init__(
        self,
        bench: Workbench,
        settings: RlCurationSettings,
        benchmark: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.settings = settings
        self.benchmark = benchmark
        self.progress = progress
        self.rejects = Rejects(bench.verdicts / "rejects.jsonl")
        self.tasks = Spool(iterate_tasks(bench.source, self.rejects), bench.verdicts)
        self.rollout_log: VerdictLog | None = None
        judge = settings.judge if "ambiguity" in settings.filters else None
        super().__init__(bench, settings, judge, progress)

    def rows(self) -> Spool[Task]:
        return self.tasks

    def select(self, numbers: Collection[int]) -> Iterator[tuple[int, Task]]:
        return ((number, self.tasks[number]) for number in sorted(numbers))

    def write_rows(self, path: Path, rows: Iterable[Task], reasons: Iterable[str] | None) -> None:
        write_tasks(path, rows, reasons)

    def finished(self, number: int, row: Task) -> Task:
        """The task with what its rollouts came to."""
        if self.rollout_log is None:
            return row
        return replace(row, metadata={**row.metadata, "rollouts": self.rollout_log[number].detail})

    async def curate(self, out_dir: Path) -> CurationReport:
        for which in self.rule_filters():
            await self.filtering.run(which)
        if self.judge:
            panel = JudgePanel(self.judge.task, self.judge.settings)
            identity = f"{panel.settings.model} {(PROMPTS / 'rl_judge.md').read_text()}"
            await self.ask_judge(panel, ambiguity_filter(panel, identity))
        left = [n for n, _ in self.filtering.survivors() if n not in self.waiting]
        queues: dict[str, list[int]] = defaultdict(list)
        for number in sorted(left, key=self.rank):
            queues[self.abilities[number]].append(number)
        return self.publish(out_dir, self.outcome(await self.worth_training_on(queues)))

    def rule_filters(self) -> Iterator[Filter[Task]]:
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
            yield benchmark_filter(s.deduplicate, own, self.bench.verdicts, self.progress)

    async def worth_training_on(self, queues: Mapping[str, list[int]]) -> Mapping[str, list[int]]:
        """Of the candidates by ability, those with something to teach, as far as rollouts tell."""
        s = self.settings
        if "rollouts" not in s.filters:
            return queues
        identity = f"{s.generations} {s.batch_size} {s.max_tokens} {s.max_turns}"
        wanted = f"{s.keep_rule} {s.prompts} {s.mixture}"
        self.rollout_log = self.filtering.open_log("rollouts", f"{identity} {wanted}")
        search = RolloutSearch(self.bench, s, self.tasks, self.rollout_log, self.progress)
        return await search.run(queues)

    def outcome(self, qualifying: Mapping[str, list[int]]) -> Outcome:
        """The prompts that make the result, of those that qualify by ability.

        Raises:
            InputError: there is none.
        """
        available = {ability: len(numbers) for ability, numbers in qualifying.items()}
        enough = targets(available, self.settings.mixture, self.settings.prompts)
        kept = sorted(n for a, numbers in qualifying.items() for n in numbers[: enough[a]])
        if not kept:
            raise InputError(
                f"{self.bench.source}: no prompt qualifies; dropped: "
                + ", ".join(f"{c.name} {c.dropped} of {c.seen}" for c in self.filter_counts())
            )
        rejected = {
            number: f"{by[0]}: {by[1].reason}"
            for number in range(len(self.tasks))
            if (by := self.filtering.dropped_by(number))
        }
        return Outcome(
            kept={number: self.kind(number) for number in kept},
            rejected=rejected,
            not_needed=len(self.tasks) - len(kept) - len(rejected) - len(self.waiting),
            figures=self.figures(self.rollout_log) if self.rollout_log else {},
        )

    def kind(self, number: int) -> str:
        if self.rollout_log is None:
            return "not tried"
        mixed = 0 < self.rollout_log[number].detail["accuracy"] < 1
        return "some right, some wrong" if mixed else "all right, differing numbers of calls"

    def figures(self, log: VerdictLog) -> dict[str, dict[str, float]]:
        """Means over the prompts tried, by ability."""
        tried: dict[str, list[dict[str, float]]] = defaultdict(list)
        for number, verdict in log.items():
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
