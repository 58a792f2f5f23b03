"""TRL's reward functions, with a judge that failed told from one that does not apply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from trl.trainer.utils import is_async_callable

from toolwise.training.hdpo.rewards import FAILED


def marks_failures(reward: Callable[..., Any]) -> Callable[..., Any]:
    """A reward function that says `FAILED` where `reward` says NaN; TRL makes NaN of None."""
    if is_async_callable(reward):

        async def marked_async(*args: Any, **kwargs: Any) -> list[float | None]:
            return _marked(await reward(*args, **kwargs))

        return marked_async

    def marked(*args: Any, **kwargs: Any) -> list[float | None]:
        return _marked(reward(*args, **kwargs))

    return marked


def _marked(rewards: Sequence[float | None]) -> list[float | None]:
    return [FAILED if r is not None and math.isnan(r) else r for r in rewards]
