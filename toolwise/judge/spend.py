"""What a paid endpoint costs, and a bound on it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toolwise.errors import BackendError

MILLION = 1_000_000


class Budget(BaseModel):
    """Most a run may spend on an endpoint; without limits, what it takes.

    Args:
        tokens: of prompts and replies together.
        cost: in the currency of the prices.
        prompt_price: of a million prompt tokens.
        reply_price: of a million reply tokens (reasoning included).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int | None = Field(default=None, ge=1)
    cost: float | None = Field(default=None, gt=0)
    prompt_price: float = Field(default=0.0, ge=0)
    reply_price: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> Self:
        priced = {"prompt_price", "reply_price"} <= self.model_fields_set
        if self.cost is not None and not (priced and (self.prompt_price or self.reply_price)):
            raise ValueError("`cost` needs `prompt_price` and `reply_price`; one of them may be 0")
        return self


class Usage(NamedTuple):
    """Tokens an endpoint has counted."""

    prompt: int
    reply: int


class BudgetSpent(BackendError):
    """The budget leaves no room for another request. Nothing failed: what is left waits."""


class Bill:
    """What was spent so far, one line for every reply.

    A run that goes on after a kill goes on with its bill. Safe to use from many threads.

    Args:
        budget: its limits and prices.
        path: where the lines go; without it they are gone with the process.
    """

    def __init__(self, budget: Budget, path: Path | None = None) -> None:
        self.budget = budget
        self.replies = 0
        self.used = Usage(0, 0)
        """Tokens of all replies."""
        self._path = path
        self._lock = threading.Lock()
        if path and path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            for line in whole:
                self._add(Usage(*json.loads(line)))
            # A kill in the middle of a write leaves a torn last line, which the next must not join.
            os.truncate(path, sum(map(len, whole)))

    def admit(self) -> None:
        """Let one more request be made.

        Requests that are under way when the budget is reached are still paid for.

        Raises:
            BudgetSpent: it is reached.
        """
        if self.spent:
            raise BudgetSpent(f"the budget is spent: {self}")

    def pay(self, usage: Usage) -> None:
        """Take down what one reply cost."""
        with self._lock:
            self._add(usage)
            if self._path:
                with self._path.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(usage) + "\n")

    def _add(self, usage: Usage) -> None:
        self.replies += 1
        self.used = Usage(self.used.prompt + usage.prompt, self.used.reply + usage.reply)

    @property
    def spent(self) -> bool:
        """Whether a limit is reached."""
        tokens, cost = self.budget.tokens, self.budget.cost
        return (tokens is not None and sum(self.used) >= tokens) or (
            cost is not None and self.cost >= cost
        )

    @property
    def cost(self) -> float:
        """In the currency of the prices."""
        prices = self.budget
        total = self.used.prompt * prices.prompt_price + self.used.reply * prices.reply_price
        return total / MILLION

    def __str__(self) -> str:
        priced = self.budget.prompt_price or self.budget.reply_price
        cost = f", {self.cost:.4g} at the prices given" if priced else ""
        return f"{self.used.prompt} prompt and {self.used.reply} reply tokens{cost}"
