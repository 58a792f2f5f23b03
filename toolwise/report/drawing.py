"""What every picture of a report shares: colours, shapes, panels, and SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.typing import RcKeyType

INK, MUTED, GRID, BACKGROUND = "#1f2328", "#59636e", "#dfe4ea", "#ffffff"
PALETTE = ("#7d8590", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
"""Stage colours, told apart with any colour vision (Okabe & Ito); shapes differ as well."""

MARKERS = ("s", "^", "o", "D", "v")
_FONT = "DejaVu Sans"


def grid(rows: int, columns: int, panel: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels, `panel` wide and high in inches each."""
    with mpl.rc_context(_style()):
        figure = Figure(
            figsize=(panel[0] * columns, panel[1] * rows),
            layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08),
        )
        grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, [list(row) for row in grid]


def _style() -> dict[RcKeyType, Any]:
    return {
        "font.family": _FONT,
        "font.size": 9,
        "axes.facecolor": BACKGROUND,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "figure.facecolor": BACKGROUND,
    }


def title(axes: Axes, text: str) -> None:
    """Say what a panel shows."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK)


def percent(axes: Axes) -> None:
    """Both axes are shares, from 0% to 100%."""
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def legend(figure: Figure, handles: Sequence[Line2D], columns: int | None = None) -> None:
    """What colours and shapes mean, below the panels; in one line unless `columns` says more."""
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns or len(handles),
        frameon=False,
        labelcolor=INK,
    )


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same data."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "toolwise", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", facecolor=BACKGROUND, metadata={"Date": None})
    # Laid out with the one font matplotlib brings along, shown in the reader's own.
    return buffer.getvalue().replace(
        f"'{_FONT}'".encode(), b"system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    )
