"""The pictures of a report, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from toolwise.evaluation.labels import MODE_LABELS
from toolwise.report import drawing
from toolwise.report.drawing import BACKGROUND, GRID, INK, MARKERS, MUTED, PALETTE
from toolwise.report.measures import STAGE_LABELS, Report, abilities, label, measure, stages

_DARK = {
    INK: "#e6edf3",
    MUTED: "#9aa5b1",
    GRID: "#30363d",
    BACKGROUND: "#161b22",
    **dict(zip(PALETTE, ("#9aa6b2", "#f0883e", "#58b4f0", "#2fc79a", "#e29bc0"), strict=True)),
}


def accuracy_against_calls(report: Report, modes: Sequence[str] = ("greedy",)) -> bytes:
    """Accuracy against tool-call rate: a panel per ability, a point per stage, 95% intervals.

    The dotted line is the share of items that the last stage does not solve without tools: the
    tool-call rate of a model that calls exactly when it must.
    """
    names = abilities(report)
    figure, rows = drawing.grid(len(modes), len(names), panel=(2.7, 2.9))
    for mode, row in zip(modes, rows, strict=True):
        for ability, axes in zip(names, row, strict=True):
            _draw_need(axes, report, mode, ability)
            _draw_stages(axes, report, mode, ability)
            axes.set_xlim(-0.06, 1.06)
            axes.set_ylim(-0.06, 1.06)
            drawing.percent(axes)
            drawing.title(axes, ability.capitalize())
            axes.set_xlabel("Tool-call rate")
        row[0].set_ylabel(
            f"Accuracy\n({MODE_LABELS[mode].lower()})" if len(modes) > 1 else "Accuracy"
        )
    handles = _stage_handles(report)
    need = Line2D([], [], color=MUTED, linestyle=(0, (1, 2)), label="share that needs a tool")
    drawing.legend(figure, [*handles, need])
    return drawing.svg(figure)


def calls_by_need(report: Report) -> bytes:
    """Share of answers with a tool call, on items that need none and on items that need one."""
    names = abilities(report)
    columns = (
        ("redundant_call_rate", "Items solvable without tools"),
        ("necessary_call_rate", "Items not solvable without tools"),
    )
    figure, rows = drawing.grid(1, 2, panel=(5.4, 0.55 * len(names) + 1.5))
    looks = _looks(report)
    for (metric, title), axes in zip(columns, rows[0], strict=True):
        for index, (stage, (colour, marker)) in enumerate(looks.items()):
            for row, ability in enumerate(names):
                offset = (index - (len(looks) - 1) / 2) * 0.2
                for mode, filled in (("greedy", True), ("sampled", False)):
                    found = measure(report, stage, metric, mode, ability)
                    if found is None:
                        continue
                    axes.errorbar(
                        found.value,
                        row + offset + (0 if filled else 0.07),
                        xerr=[[found.below], [found.above]],
                        color=colour,
                        marker=marker,
                        markersize=6.5,
                        markerfacecolor=colour if filled else BACKGROUND,
                        linewidth=1.3,
                        clip_on=False,
                        zorder=3,
                    )
        axes.set_yticks(range(len(names)), [name.capitalize() for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        drawing.title(axes, title)
        axes.set_xlabel("Answers with at least one tool call")
    rows[0][1].tick_params(labelleft=False)
    sampled = Line2D(
        [],
        [],
        color=MUTED,
        marker="o",
        linestyle="",
        markerfacecolor=BACKGROUND,
        label="hollow: sampled at temperature 1",
    )
    drawing.legend(figure, [*_stage_handles(report), sampled])
    return drawing.svg(figure)


def training_curves(report: Report) -> bytes | None:
    """What HDPO training logged, step by step; None where it logged nothing that is drawn here.

    Thin lines are the steps, thick ones their running mean.
    """
    log: dict[str, list[float | None]] = report.get("training") or {}
    panels = [
        (title, found)
        for title, curves in TRAINING_PANELS
        if (found := [(key, name) for key, name in curves if key in log])
    ]
    if not panels:
        return None
    figure, rows = drawing.grid(1, len(panels), panel=(10.8 / max(len(panels), 3), 2.7))
    for (title, curves), axes in zip(panels, rows[0], strict=True):
        for index, (key, name) in enumerate(curves):
            points = [
                (step, value)
                for step, value in zip(log["step"], log[key], strict=True)
                if step is not None and value is not None
            ]
            xs = [step for step, _ in points]
            ys = [value for _, value in points]
            colour = PALETTE[(2, 1, 3, 4, 0)[index % 5]]
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(
                xs,
                _running_mean(ys),
                color=colour,
                linewidth=1.9,
                linestyle=("-", "--", "-.", ":")[index % 4],
                label=name,
            )
        drawing.title(axes, title)
        axes.set_xlabel("HDPO step")
        axes.set_ylim(bottom=0)
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return drawing.svg(figure)


TRAINING_PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Accuracy", (("accuracy", "right rollouts"),)),
    ("Tool-call rate", (("tool_call_rate", "rollouts with a call"),)),
    ("Size of Q", (("qualifying/rollouts", "of all rollouts"), ("qualifying/groups", "of groups"))),
    (
        "Mean |advantage|",
        (("advantage/accuracy", "accuracy"), ("advantage/efficiency", "efficiency")),
    ),
)
"""What is drawn of the training log: panel title, then (column, label) of each curve."""


def in_the_dark(svg: bytes) -> bytes:
    """The same picture in the colours of a dark page."""
    text = svg.decode()
    for light, dark in _DARK.items():
        text = text.replace(light, dark)
    return text.encode()


def _draw_stages(axes: Axes, report: Report, mode: str, ability: str) -> None:
    path: list[tuple[float, float]] = []
    for stage, (colour, marker) in _looks(report).items():
        accuracy = measure(report, stage, "accuracy", mode, ability)
        calls = measure(report, stage, "tool_call_rate", mode, ability)
        if accuracy is None or calls is None:
            continue
        path.append((calls.value, accuracy.value))
        axes.errorbar(
            calls.value,
            accuracy.value,
            xerr=[[calls.below], [calls.above]],
            yerr=[[accuracy.below], [accuracy.above]],
            color=colour,
            marker=marker,
            markersize=7.5,
            markeredgecolor=BACKGROUND,
            markeredgewidth=0.8,
            linewidth=1.4,
            zorder=3,
        )
    for start, end in pairwise(path):
        axes.annotate(
            "",
            xy=end,
            xytext=start,
            arrowprops={
                "arrowstyle": "->",
                "color": MUTED,
                "linewidth": 0.9,
                "alpha": 0.7,
                "shrinkA": 7,
                "shrinkB": 7,
            },
            zorder=2,
        )


def _draw_need(axes: Axes, report: Report, mode: str, ability: str) -> None:
    last = stages(report)[-1]
    needless = measure(report, last, "redundant_call_rate", mode, ability)
    needed = measure(report, last, "necessary_call_rate", mode, ability)
    counts = [0 if found is None else found.count for found in (needless, needed)]
    if sum(counts):
        axes.axvline(
            counts[1] / sum(counts),
            color=MUTED,
            linewidth=1.2,
            linestyle=(0, (1, 2)),
            zorder=1,
        )


def _looks(report: Report) -> dict[str, tuple[str, str]]:
    """Colour and marker of each stage; a known stage has its own whatever stands beside it."""
    order = list(dict.fromkeys([*STAGE_LABELS, *stages(report)]))
    looks = zip(order, cycle(zip(PALETTE, MARKERS, strict=True)))
    return {stage: look for stage, look in looks if stage in report["stages"]}


def _stage_handles(report: Report) -> list[Line2D]:
    return [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7, label=label(stage))
        for stage, (colour, marker) in _looks(report).items()
    ]


def _running_mean(values: list[float], width: int = 7) -> list[float]:
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
