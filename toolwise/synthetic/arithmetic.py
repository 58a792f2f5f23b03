"""Math: one-digit sums a model does in its head, and arithmetic it cannot."""

from __future__ import annotations

import numpy as np

from toolwise.data import AnswerType, Task

PHRASINGS = ("What is {}?", "Compute {}.", "How much is {}?")


def easy_expressions() -> list[str]:
    """Every sum of two one-digit numbers."""
    return [f"{a}+{b}" for a in range(10) for b in range(10)]


def hard_expression(rng: np.random.Generator) -> str:
    """A sum of two three-digit numbers or a product of two two-digit numbers."""
    if rng.random() < 0.5:
        a, b = rng.integers(100, 1000, 2)
        return f"{a}+{b}"
    a, b = rng.integers(11, 100, 2)
    return f"{a}*{b}"


def value(expression: str) -> str:
    """What an expression of this module comes to."""
    for sign in "+*":
        if sign in expression:
            a, b = map(int, expression.split(sign))
            return str(a + b if sign == "+" else a * b)
    raise ValueError(f"no operator in {expression!r}")


def code(expression: str) -> str:
    """The python call that works an expression out."""
    return f"print({expression})"


def math_task(task_id: str, needs_tool: bool, rng: np.random.Generator) -> Task:
    """One question about one expression."""
    easy = easy_expressions()
    expression = hard_expression(rng) if needs_tool else easy[int(rng.integers(len(easy)))]
    return Task(
        id=task_id,
        source="signboard",
        ability="math",
        question=PHRASINGS[int(rng.integers(len(PHRASINGS)))].format(expression),
        answer=(value(expression),),
        answer_type=AnswerType.EXACT,
        metadata={"needs_tool": needs_tool, "expression": expression},
    )
