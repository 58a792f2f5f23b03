"""Scores of items whose answers are known, for tests of the gate."""

from __future__ import annotations

from dataclasses import replace

from toolwise.evaluation.metrics import RolloutScore

TEMPLATE = RolloutScore("", "math", "greedy", 0, True, 0, 0, 10, 1.0, 0.0, "7")


def population(
    solvable: int,
    unsolvable: int,
    redundant: int = 0,
    abstained: int = 0,
    wrong: int = 0,
    ability: str = "math",
) -> list[RolloutScore]:
    """Greedy and tools-off rows: `redundant` of the solvable items have a call, `abstained` of the
    others have none, the first `wrong` items are answered wrongly."""
    rows: list[RolloutScore] = []
    for i in range(solvable + unsolvable):
        needs_tool = i >= solvable
        calls = i - solvable >= abstained if needs_tool else i < redundant
        item = replace(TEMPLATE, task_id=f"{ability}-{i}", ability=ability)
        rows.append(replace(item, tool_calls=int(calls), correct=i >= wrong))
        rows += [replace(item, mode="tools_off", sample=k, correct=not needs_tool) for k in (0, 1)]
    return rows
