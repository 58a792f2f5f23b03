"""The study's plots, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bench.hdpo.exact import Method, Prompt, push
from bench.hdpo.figures import THRESHOLDS

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart with any colour vision (Okabe & Ito)."""
IN_Q = (
    "three times as long: hdpo 0.15",
    "three times as long: hdpo 0.3",
    "three times as long: coupled 0.1",
    "three times as long: coupled 1.0",
    "never abstains, three times as long: eapo 0.5, tool-free 2 uncorrected",
    "judge wrong in 15%: hdpo 0.15",
    "groups mix right and wrong: hdpo 0.15",
)
"""Arms whose qualifying sets are drawn."""


def plot_exact(methods: dict[str, Method], call: float, path: Path) -> None:
    """Expected push towards answering directly: both ways equally good, and calls 95% right."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    both, needed = figure.subplots(1, 2)
    grid = [0.02 * i for i in range(51)]
    shown = [
        name
        for name in methods
        if name not in ("hdpo 0.05", "hdpo 0.3", "coupled 0.1", "bonus to all 0.1")
    ]
    for name, colour in zip(shown, cycle(COLOURS)):
        method = methods[name]
        style = {"color": colour, "linewidth": 1.6, "linestyle": _dash(name)}
        both.plot(grid, [push(Prompt(call, c, c), method).mean for c in grid], label=name, **style)
        needed.plot(grid, [push(Prompt(call, 0.95, c), method).mean for c in grid], **style)
    both.set_title("A call and a direct answer are right equally often", fontsize=9)
    both.set_xlabel("accuracy of both")
    both.set_ylabel("push towards answering directly")
    needed.set_title("An answer after a call is right in 95%", fontsize=9)
    needed.set_xlabel("accuracy of a direct answer")
    for axes in (both, needed):
        axes.axhline(0, color="#59636e", linewidth=0.8)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _clean(axes)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    _save(figure, path)


def plot_curves(results: dict[str, Any], path: Path) -> None:
    """Redundant (solid) and necessary (dotted) rate of the rollouts; a panel per kind of arm."""
    panels = _panels(results["arms"])
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 3.0 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, sharey=True).flatten()
    for axes, (title, arms) in zip(grid, panels.items(), strict=False):
        for arm, colour in zip(arms, cycle(COLOURS)):
            curve = arm["curve"]
            axes.plot(
                curve["rollouts"], _known(curve["redundant"]), color=colour, label=arm["name"]
            )
            axes.plot(
                curve["rollouts"], _known(curve["necessary"]), color=colour, linestyle=(0, (1, 2))
            )
        axes.axhline(min(THRESHOLDS), color="#59636e", linewidth=0.8)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("rollouts")
        axes.legend(fontsize=7, framealpha=0.75, edgecolor="none", loc="best")
        _clean(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::2]:
        axes.set_ylabel("rollouts with a call")
    _save(figure, path)


def plot_q(results: dict[str, Any], path: Path) -> None:
    """The implicit curriculum: size of Q, groups with an efficiency signal, mixed groups."""
    arms = [arm for arm in results["arms"] if f"{arm['regime']}: {arm['name']}" in IN_Q]
    titles = {
        "q": "rollouts in Q, of a group",
        "signal": "groups with an efficiency signal",
        "mixed": "groups with right and wrong",
    }
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for arm, colour in zip(arms, COLOURS, strict=False):
            label = f"{arm['regime']}: {arm['name']}" if name == "q" else None
            axes.plot(arm["curve"]["rollouts"], arm["curve"][name], color=colour, label=label)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("rollouts")
        axes.set_ylim(bottom=0)
        _clean(axes)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    _save(figure, path)


def _panels(arms: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    panels: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        title = arm["regime"]
        if title == "main":
            kind = arm["name"].split()[0]
            options = "," in arm["name"] or kind == "eapo"
            title = "main: options of hdpo, and eapo" if options else f"main: {kind}"
            title = "main: coupled, grpo" if kind in ("coupled", "grpo") else title
        panels.setdefault(title, []).append(arm)
    return panels


def _known(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _dash(name: str) -> Any:
    return "-" if name.startswith("hdpo") else (0, (4, 1.5))


def _clean(axes: Axes) -> None:
    axes.grid(color="#dfe4ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _save(figure: Figure, path: Path) -> None:
    # The same results give the same bytes: no date, no random ids; text stays text.
    with mpl.rc_context({"svg.hashsalt": "toolwise", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
