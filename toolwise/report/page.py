"""The report as one self-contained HTML page: no network, no scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from toolwise.evaluation.labels import METRICS, MODE_LABELS, MetricLook
from toolwise.pages import render
from toolwise.report import plots
from toolwise.report.measures import Measure, Report, abilities, label, measure, stages
from toolwise.report.samples import SampleRow, choose_items


class Tile(NamedTuple):
    """One headline figure: from the stage before to the last one."""

    name: str
    look: MetricLook
    before: Measure
    after: Measure


def render_page(report: Report, samples: Mapping[str, list[SampleRow]]) -> str:
    """The page, from the report and the sample rollouts of each stage."""
    return render(
        "toolwise.report",
        "page.html",
        {"cell": _cell, "change": _change},
        report=report,
        headline=headline(report),
        tiles=_tiles(report),
        stages=stages(report),
        label=label,
        modes=MODE_LABELS,
        abilities=abilities(report),
        metrics=METRICS,
        measure=lambda *key: measure(report, *key),
        accuracy_picture=_picture(plots.accuracy_against_calls(report, tuple(MODE_LABELS))),
        accuracy_alt=_in_words(report, "accuracy", "tool_call_rate"),
        calls_picture=_picture(plots.calls_by_need(report)),
        calls_alt=_in_words(report, "redundant_call_rate", "necessary_call_rate"),
        training_picture=_picture(plots.training_curves(report)),
        training_alt=_training_in_words(report),
        items=choose_items(samples),
    )


def headline(report: Report) -> str:
    """What the last stage changed against the one before it, in one sentence of figures."""
    tiles = {tile.name: tile for tile in _tiles(report)}
    if not tiles:
        return "No two stages were measured, so there is nothing to compare."
    before, after = (label(stage) for stage in stages(report)[-2:])
    parts = [
        f"{tile.look.label.lower()} {tile.look.short(tile.before.value)} → "
        f"{tile.look.short(tile.after.value)}"
        for tile in tiles.values()
    ]
    sentence = f"From {before} to {after}: {', '.join(parts)}"
    calls = tiles.get("calls_per_rollout")
    if calls and calls.before.value:
        saved = 1 - calls.after.value / calls.before.value
        sentence += f" ({abs(saved):.0%} {'fewer' if saved >= 0 else 'more'})"
    return f"{sentence}."


def _tiles(report: Report) -> list[Tile]:
    if len(stages(report)) < 2:
        return []
    tiles: list[Tile] = []
    for name in ("redundant_call_rate", "necessary_call_rate", "accuracy", "calls_per_rollout"):
        before, after = (measure(report, stage, name) for stage in stages(report)[-2:])
        if before is not None and after is not None:
            tiles.append(Tile(name, METRICS[name], before, after))
    return tiles


_NO_DATA = Markup('<span class="quiet">no data</span>')


def _cell(found: Measure | None, look: MetricLook) -> Markup:
    if found is None:
        return _NO_DATA
    interval = (
        f"{look.short(found.low)} – {look.short(found.high)}, "
        if found.low is not None and found.high is not None
        else ""
    )
    return Markup('<data value="{}">{}</data> <span class="quiet">{}n = {}</span>').format(
        found.value, look.short(found.value), interval, found.count
    )


def _change(difference: dict[str, Any] | None, look: MetricLook) -> Markup:
    """A difference of shares in percentage points, other ones in their own unit."""
    if difference is None:
        return _NO_DATA
    scale, unit = (100, " pp") if look.is_share else (1, "")
    value, low, high = (
        f"{scale * difference[key]:+.2f}".replace("-", "−") for key in ("value", "low", "high")
    )
    return Markup('<data value="{}">{}{}</data> <span class="quiet">{} to {}</span>').format(
        difference["value"], value, unit, low, high
    )


def _picture(svg: bytes | None) -> dict[str, str] | None:
    """Data URIs of a picture for light and for dark pages."""
    if svg is None:
        return None
    return {
        name: f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"
        for name, drawn in (("light", svg), ("dark", plots.in_the_dark(svg)))
    }


def _in_words(report: Report, *names: str) -> str:
    """A picture's greedy figures, for who cannot see it."""
    parts: list[str] = []
    for ability in abilities(report):
        for stage in stages(report):
            figures = [
                f"{METRICS[name].label.lower()} {METRICS[name].short(found.value)}"
                for name in names
                if (found := measure(report, stage, name, ability=ability)) is not None
            ]
            if figures:
                parts.append(f"{ability}, {label(stage)}: {', '.join(figures)}")
    return f"Greedy decoding. {'; '.join(parts)}."


def _training_in_words(report: Report) -> str:
    log = report["training"] or {}
    parts = []
    for title, curves in plots.TRAINING_PANELS:
        for name, curve in curves:
            logged = [value for value in log.get(name, ()) if value is not None]
            if logged:
                parts.append(f"{title}, {curve}: from {logged[0]:.2f} to {logged[-1]:.2f}")
    return f"Training curves. {'; '.join(parts)}."
