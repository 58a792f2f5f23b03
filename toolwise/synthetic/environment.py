"""The signboard environment: everything the pipeline needs, made from a seed.

`needs_tool` in a task's metadata is true by construction. It is there for tests and reports; no
training step, filter or gate may read it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolwise.data import Task, Trajectory
from toolwise.data.parquet import write_tasks, write_trajectories
from toolwise.storage import atomic_directory
from toolwise.synthetic import arithmetic, facts, perception
from toolwise.synthetic.digits import ScanSplit
from toolwise.synthetic.facts import Fact
from toolwise.synthetic.perception import Size
from toolwise.synthetic.settings import SignboardSettings
from toolwise.synthetic.trajectories import Flaw, direct, flawed, with_tool, without_tools

ABILITIES = ("perception", "math", "search")
BORDERLINE_SHARE = 0.08
"""Share of the signs that are neither large nor a detail."""
PHRASES = (
    perception.QUESTION,
    perception.PAGE_QUESTION,
    perception.WHERE_QUESTION,
    "What is ",
    "Compute ",
    "How much is ",
    "Name ",
    "Tell me ",
    "Repeat: ",
    "As of today, ",
    " as of today",
    "the capital of ",
    "The capital of ",
    "the price of ",
    "the level of ",
    "the queue at ",
    "the speed of ",
    "capital of ",
    "price of ",
    "level of ",
    "queue at ",
    "speed of ",
    ", what is ",
    " is ",
    '\n{"name": "python", "arguments": {"code": "',
    '\n{"name": "text_search", "arguments": {"query": "',
    '"}}\n',
    "print(",
    "show(image.crop((",
    ")))",
    ", ",
)
"""Wordings of this environment that the tiny tokenizer keeps whole."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One seed's tasks, trajectories and search corpus."""

    trajectories: list[Trajectory]
    rl_tasks: list[Task]
    benchmark: list[Task]
    facts: dict[str, Fact]


# Shares of the raw trajectories: (share, needs a tool, how it is written).
_RAW_MIX = (
    (0.32, True, "with_tool"),
    (0.30, False, "with_tool"),
    (0.10, None, "flawed"),
    (0.04, False, "direct"),
    (0.24, False, "without_tools"),
)


def make_environment(seed: int, settings: SignboardSettings) -> Environment:
    """Make everything from `seed`: the same seed gives the same bytes."""
    rng = np.random.default_rng([seed, 288])
    maker = _TaskMaker(rng)
    trajectories = []
    for number in range(settings.trajectories):
        mix = int(rng.choice(len(_RAW_MIX), p=[share for share, _, _ in _RAW_MIX]))
        _, needed, style = _RAW_MIX[mix]
        needs_tool = bool(rng.random() < 0.5) if needed is None else needed
        ability = ABILITIES[number % len(ABILITIES)]
        task = maker.task(f"sft-{number}", ability, needs_tool, ScanSplit.TRAIN)
        match style:
            case "with_tool":
                trajectories.append(with_tool(task, maker.facts))
            case "flawed":
                flaw = list(Flaw)[int(rng.integers(len(Flaw)))]
                trajectories.append(flawed(task, maker.facts, flaw, rng))
            case "direct":
                trajectories.append(direct(task))
            case _:
                trajectories.append(without_tools(task))
    rl_tasks = maker.half_needed("rl", settings.rl_tasks, ScanSplit.TRAIN)
    benchmark = maker.half_needed("bench", settings.benchmark_items, ScanSplit.BENCHMARK)
    for _ in range(settings.corpus_distractors):
        maker.new_fact()
    return Environment(trajectories, rl_tasks, benchmark, maker.facts)


def write_signboard(out_dir: Path, seed: int, settings: SignboardSettings) -> None:
    """Write `raw_trajectories.parquet`, `rl_tasks.parquet`, `benchmark.parquet`, `corpus.jsonl`."""
    environment = make_environment(seed, settings)
    with atomic_directory(out_dir) as folder:
        write_trajectories(folder / "raw_trajectories.parquet", environment.trajectories)
        write_tasks(folder / "rl_tasks.parquet", environment.rl_tasks)
        write_tasks(folder / "benchmark.parquet", environment.benchmark)
        with (folder / "corpus.jsonl").open("w") as corpus:
            for number, fact in enumerate(environment.facts.values()):
                row = {"id": str(number), "title": fact.subject, "text": fact.passage}
                corpus.write(json.dumps(row) + "\n")


class _TaskMaker:
    """Draws tasks; no question about a drawn number, name or sum is asked in two splits."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._expressions: set[str] = set()
        self.facts: dict[str, Fact] = {fact.subject: fact for fact in facts.STILL}

    def half_needed(self, prefix: str, count: int, split: ScanSplit) -> list[Task]:
        """Abilities in turn, every other item of an ability needing its tool."""
        return [
            self.task(
                f"{prefix}-{number}",
                ABILITIES[number % len(ABILITIES)],
                number // len(ABILITIES) % 2 == 0,
                split,
            )
            for number in range(count)
        ]

    def task(self, task_id: str, ability: str, needs_tool: bool, split: ScanSplit) -> Task:
        match ability:
            case "perception":
                size = Size.DETAIL if needs_tool else Size.LARGE
                if self._rng.random() < BORDERLINE_SHARE:
                    size = Size.BORDERLINE
                return perception.perception_task(task_id, size, split, self._rng)
            case "math":
                while True:
                    task = arithmetic.math_task(task_id, needs_tool, self._rng)
                    expression = task.metadata["expression"]
                    if not needs_tool or expression not in self._expressions:
                        self._expressions.add(expression)
                        return task
            case _:
                still = facts.STILL[int(self._rng.integers(len(facts.STILL)))]
                fact = self.new_fact() if needs_tool else still
                return facts.search_task(task_id, fact, self._rng)

    def new_fact(self) -> Fact:
        """A fact of the day about a name not used before."""
        while True:
            fact = facts.changing_fact(self._rng)
            if fact.subject not in self.facts:
                self.facts[fact.subject] = fact
                return fact
