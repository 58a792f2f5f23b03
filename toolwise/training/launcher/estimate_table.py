"""An estimate as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from toolwise.training.launcher.estimate import Estimate, Phase, gib


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Print what a step needs, part by part, with the arithmetic, and how long it takes."""
    each = "GPU" if estimate.usual else "process"
    title = f"{estimate.step} on {estimate.place}: memory of one {each}"
    phases = [*estimate.phases, *([estimate.server] if estimate.server else [])]
    console.print(_table(title, phases))
    if estimate.host:
        console.print(_table("main memory of one node", estimate.host))
    if estimate.conversations is not None:
        console.print(
            f"One copy of vLLM holds {estimate.conversations} conversations of the longest kind"
        )
    if estimate.usual and estimate.longest:
        console.print(f"Time, estimated: {_hours(estimate)}")
    console.print()


def _table(title: str, phases: Sequence[Phase]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("part", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("how it comes about", overflow="fold")
    for phase in phases:
        for part in phase.parts:
            table.add_row(part.name, gib(part.size), part.arithmetic)
        verdict = "fits" if phase.size <= phase.room else "does not fit"
        table.add_row(
            f"[bold]{phase.name}, in all[/]",
            f"[bold]{gib(phase.size)}[/]",
            f"[bold]{verdict}[/] in {gib(phase.room)}",
            end_section=True,
        )
    return table


def _hours(estimate: Estimate) -> str:
    usual, longest = estimate.usual, estimate.longest
    assert usual is not None
    assert longest is not None
    step = f"{usual.update:,.0f} s of update"
    if usual.rollouts:
        step = f"{usual.rollouts:,.0f} s of rollouts + {step}"
    gpus = "1 GPU" if usual.gpus == 1 else f"{usual.gpus} GPUs"
    hours = f"{usual.gpu_hours:,.0f}"
    return (
        f"{usual.steps:,} steps × ({step}) = {usual.hours:,.0f} h × {gpus} = "
        f"{hours} GPU hour{'s' * (hours != '1')}; {longest.gpu_hours:,.0f} if every "
        "conversation were of the longest kind"
    )
