"""Requests to a server that run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def concurrently(
    call: Callable[[Item], Awaitable[Result]], items: Iterable[Item], at_once: int
) -> list[Result]:
    """`call` of every item, so many at once; results in order.

    The first failure cancels the others and is raised as it is.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with slots:
            return await call(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
