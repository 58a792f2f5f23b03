"""The simulation as tables and a plot: `python -m toolwise.promotion.simulation_page`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from toolwise.errors import ToolwiseError
from toolwise.markdown import fill, table
from toolwise.promotion.policy import GatePolicy
from toolwise.promotion.simulation import passes_accuracy, passes_necessary, passes_redundant
from toolwise.storage import atomic_file

PLACE = "simulation"
"""The tables' place in the page."""

REDUNDANT_RATES = (0.01, 0.02, 0.05, 0.10)
NECESSARY_RATES = (0.99, 0.97, 0.95, 0.90)
CHANGED = (0.02, 0.05, 0.10)
WORSE = (0.02, 0.03, 0.05)
ITEMS = (50, 75, 100, 150, 200, 300, 500, 1000, 2000)
_PLOTTED = (*range(50, 400, 10), *range(400, 2001, 50))
_STYLES = ("-", "--", "-.", ":")
_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#7d8590")
"""Told apart with any colour vision (Okabe & Ito)."""


class _Part(NamedTuple):
    """One table: a criterion, and the models it is asked about."""

    title: str
    heading: str
    truths: Sequence[float]
    passes: Callable[[GatePolicy, float, int], float]


def tables(policy: GatePolicy) -> str:
    """Markdown: a table per criterion, a row per number of items, a column per truth."""
    redundant = (
        f"`redundant_call_rate` at most {policy.redundant_call_rate_max:g}: how often a model "
        "passes, by its true rate and the number of items it solves without tools"
    )
    necessary = (
        f"`necessary_call_rate` at least {policy.necessary_call_rate_min:g}: how often a model "
        "passes, by its true rate and the number of items it does not solve without tools"
    )
    accuracy = (
        f"`accuracy_drop` at most {policy.accuracy_drop_max:g}: how often a model passes that is "
        "exactly as accurate, by the share of items that changed (half each way) and the number of "
        "all items"
    )
    worse = (
        f"`accuracy_drop` at most {policy.accuracy_drop_max:g}: how often a model passes that is "
        "truly worse, by the share of items it has lost (none is gained) and the number of items"
    )
    parts = (
        _Part(redundant, "true rate {:.0%}", REDUNDANT_RATES, passes_redundant),
        _Part(necessary, "true rate {:.0%}", NECESSARY_RATES, passes_necessary),
        _Part(accuracy, "{:.0%} changed", CHANGED, _as_accurate),
        _Part(worse, "{:.0%} worse", WORSE, _worse),
    )
    return "\n\n".join(f"{part.title}:\n\n{_by_items(policy, part)}" for part in parts)


def _as_accurate(policy: GatePolicy, changed: float, items: int) -> float:
    return passes_accuracy(policy, changed / 2, changed / 2, items)


def _worse(policy: GatePolicy, lost: float, items: int) -> float:
    return passes_accuracy(policy, lost, 0.0, items)


def _by_items(policy: GatePolicy, part: _Part) -> str:
    head = ["items", *(part.heading.format(truth) for truth in part.truths)]
    rows = (
        [items, *(_share(part.passes(policy, truth, items)) for truth in part.truths)]
        for items in ITEMS
    )
    return table(head, rows, numbers=0)


def _share(probability: float) -> str:
    """A probability that is neither 0 nor 1 is not written as if it were."""
    if probability == 0:
        return "0"
    if probability < 0.0005:
        return "< 0.1%"
    return f"{probability:.1%}" if probability < 0.9995 else "> 99.9%"


def picture(policy: GatePolicy) -> bytes:
    """SVG: how often a model is accepted against the number of items, a line per true rate."""
    with mpl.rc_context({"svg.hashsalt": "toolwise", "font.size": 9, "axes.axisbelow": True}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for rate, style, colour in zip(REDUNDANT_RATES, _STYLES, _COLOURS, strict=True):
            chances = [passes_redundant(policy, rate, items) for items in _PLOTTED]
            axes.plot(_PLOTTED, chances, style, color=colour, label=f"true rate {rate:.0%}")
        axes.set_xscale("log")
        axes.set_xticks(ITEMS, [str(items) for items in ITEMS])
        axes.minorticks_off()
        axes.set_xlabel("Items that the model solves without tools")
        axes.set_ylabel("Accepted by the gate")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title(
            f"redundant_call_rate at most {policy.redundant_call_rate_max:g}, "
            f"at {100 * policy.confidence:g}% confidence"
        )
        axes.grid(color="#dfe4ea")
        axes.legend()
        room = io.BytesIO()
        figure.savefig(room, format="svg", metadata={"Date": None})
        return room.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m toolwise.promotion.simulation_page")
    parser.add_argument("--policy", type=Path, help="YAML file; the default policy without it")
    parser.add_argument("--page", type=Path, help="write the tables into this file")
    parser.add_argument("--picture", type=Path, help="write the plot, as SVG")
    options = parser.parse_args(arguments)
    try:
        policy = GatePolicy.load(options.policy) if options.policy else GatePolicy()
        if options.picture:
            with atomic_file(options.picture) as partial:
                partial.write_bytes(picture(policy))
        if options.page:
            fill(options.page, {PLACE: tables(policy)})
        if not options.picture and not options.page:
            print(tables(policy))
    except ToolwiseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
