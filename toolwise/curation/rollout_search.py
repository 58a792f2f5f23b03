"""Rolling out prompts until there are enough that have something to teach."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from toolwise.agent import Limits, Rollout, Sampling, run_agent
from toolwise.curation.mixture import targets
from toolwise.curation.rl_settings import RlCurationSettings
from toolwise.curation.spool import Spool
from toolwise.curation.verdicts import Verdict, VerdictLog
from toolwise.curation.workbench import Workbench
from toolwise.data import Task, grade
from toolwise.progress import Progress

ALIKE = "all rollouts are right with the same number of calls"


class RolloutSearch:
    """Rolls out prompts, abilities in turn, until there are enough of each or none are left.

    Args:
        bench: the model and the tools.
        settings: how many rollouts a prompt gets, which prompts are kept, and how many.
        tasks: all prompts, by number.
        log: keeps the verdict on every prompt tried.
        progress: told prompts kept, where `settings.prompts` says how many, or else tried; their
            number in all; "rollouts".
    """

    def __init__(
        self,
        bench: Workbench,
        settings: RlCurationSettings,
        tasks: Spool[Task],
        log: VerdictLog,
        progress: Progress | None,
    ) -> None:
        self._bench = bench
        self._settings = settings
        self._tasks = tasks
        self._log = log
        self._progress = progress

    async def run(self, queues: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """Try prompts.

        Args:
            queues: numbers of the candidates by ability, in the order to try them; left with those
                that were not tried.

        Returns:
            Those with something to teach, by ability, in the order they were tried.
        """
        s = self._settings
        candidates = sum(map(len, queues.values()))
        kept: dict[str, list[int]] = {ability: [] for ability in queues}
        spent = 0
        while batch := self._next_batch(queues, kept, spent):
            numbers = [number for _, number in batch]
            if not all(number in self._log for number in numbers):
                started = time.perf_counter()
                verdicts = await self._roll_out(numbers)
                self._log.record(verdicts, time.perf_counter() - started)
            spent += len(batch) * s.generations
            for ability, number in batch:
                if self._log[number].keep:
                    kept[ability].append(number)
            if self._progress:
                target = len(kept) * s.prompts if s.prompts else candidates
                done = sum(map(len, kept.values())) if s.prompts else spent // s.generations
                self._progress(min(done, target), target, "rollouts")
        return kept

    def _next_batch(
        self, queues: Mapping[str, list[int]], kept: Mapping[str, list[int]], spent: int
    ) -> list[tuple[str, int]]:
        """Take the next prompts, with their ability, off the queues that are still short.

        Abilities take turns, as often as their share of the mixture says where there is one.
        """
        s = self._settings
        room = max(1, s.batch_size // s.generations)
        if s.rollouts is not None:
            room = min(room, (s.rollouts - spent) // s.generations)
        wanted = targets({a: len(kept[a]) + len(queues[a]) for a in queues}, s.mixture, s.prompts)
        short = [a for a in queues if len(kept[a]) < wanted[a]]
        shares = s.mixture or dict.fromkeys(queues, 1.0)
        batch: list[tuple[str, int]] = []
        taken = dict.fromkeys(short, 0)
        while len(batch) < room and (left := [a for a in short if queues[a]]):
            ability = min(left, key=lambda a: (taken[a] + 1) / shares[a])
            taken[ability] += 1
            batch.append((ability, queues[ability].pop(0)))
        return batch

    async def _roll_out(self, numbers: Sequence[int]) -> dict[int, Verdict]:
        s = self._settings
        rollouts = await run_agent(
            self._bench.engine,
            [self._tasks[number] for number in numbers for _ in range(s.generations)],
            self._bench.tools,
            sampling=Sampling(
                temperature=1.0,
                max_tokens=s.max_tokens,
                seed=self._bench.batch_seed("rollouts", numbers[0]),
            ),
            limits=Limits(max_turns=s.max_turns),
        )
        groups = [rollouts[i : i + s.generations] for i in range(0, len(rollouts), s.generations)]
        return {
            number: judge_group(group, s.keep_rule)
            for number, group in zip(numbers, groups, strict=True)
        }


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
