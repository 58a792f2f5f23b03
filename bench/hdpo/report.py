"""The study's tables, written into docs/hdpo.md between its markers, and its plots beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.hdpo.exact import Method, Prompt, break_even, coupled, eapo, grpo, push
from bench.hdpo.figures import THRESHOLDS, WINDOW
from bench.hdpo.measuring import KNOWN_SAMPLES, MIXED
from bench.hdpo.plots import plot_curves, plot_exact, plot_q
from toolwise.markdown import fill, table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "hdpo.md"

METHODS: dict[str, Method] = {
    "hdpo 0.05": Method(grpo, 0.05),
    "hdpo 0.15": Method(grpo, 0.15),
    "hdpo 0.3": Method(grpo, 0.3),
    "hdpo 0.15, over all": Method(grpo, 0.15, over_all=True),
    "coupled 0.05": Method(coupled(0.05)),
    "coupled 0.1": Method(coupled(0.1)),
    "coupled 0.3": Method(coupled(0.3)),
    "coupled 1.0": Method(coupled(1.0)),
    "bonus to all 0.1": Method(coupled(0.1, conditional=False)),
    "bonus to all 1.0": Method(coupled(1.0, conditional=False)),
    "eapo 0.5": Method(eapo(0.5)),
}
ACCURACIES = (1.0, 0.9, 0.7, 0.5, 0.3)
CALL = 0.85
STARTS = ((0.5, 0.95), (0.85, 0.95), (0.99, 0.95))
"""(probability of a call, accuracy after one) of the break-even table."""
FLIPPED = (0.0, 0.05, 0.15)
ABILITIES = ("perception", "math", "search")
NEEDS = {"needless": 0.98, "needed": 0.02}
"""Accuracy of a direct answer where a call is needless, and where it is needed."""


def write_report(results: dict[str, Any]) -> None:
    """Write tables and plots of the study, and of what can be worked out exactly."""
    fill(PAGE, parts(results))
    plot_exact(METHODS, CALL, DOCS / "hdpo-exact.svg")
    plot_curves(results, DOCS / "hdpo-curves.svg")
    plot_q(results, DOCS / "hdpo-q.svg")


def parts(results: dict[str, Any]) -> dict[str, str]:
    """The parts of the page that are written for it, by name."""
    return {"exact": f"\n{_exact_tables()}\n", "study": f"\n{_study_tables(results)}\n"}


def _exact_tables() -> str:
    pushes = table(
        ["method", *(f"{accuracy:.0%} right" for accuracy in ACCURACIES)],
        (
            [name, *(_signed(push(Prompt(CALL, c, c), method).mean) for c in ACCURACIES)]
            for name, method in METHODS.items()
        ),
    )
    even = table(
        ["method", *(f"calls {call:.0%}" for call, _ in STARTS)],
        (
            [name, *(_share(break_even(method, call, right)) for call, right in STARTS)]
            for name, method in METHODS.items()
        ),
    )
    noisy = table(
        ["method", *(f"{need}, {f:.0%} flipped" for need in NEEDS for f in FLIPPED)],
        (
            [
                name,
                *(
                    _signed(push(Prompt(CALL, 0.95, directly, flipped), method).mean)
                    for directly in NEEDS.values()
                    for flipped in FLIPPED
                ),
            ]
            for name, method in METHODS.items()
        ),
    )
    return "\n\n".join(
        (
            f"Push towards answering directly where both ways are right equally often; the policy "
            f"calls in {CALL:.0%}:",
            pushes,
            "Break-even: a direct answer is favoured where it is right more often than this (–: "
            "always), if an answer after a call is right in 95%:",
            even,
            f"Push where the judge errs; the policy calls in {CALL:.0%}, an answer after a call is "
            f"right in 95%, a direct one in {NEEDS['needless']:.0%} or {NEEDS['needed']:.0%}:",
            noisy,
        )
    )


def _study_tables(results: dict[str, Any]) -> str:
    scale = results["scale"]
    rollouts = scale["prompts_per_step"] * scale["num_generations"]
    usual = [arm for arm in results["arms"] if len(arm["curve"]["rollouts"]) == scale["steps"]]
    cpu = [arm["cpu_seconds"] for arm in usual]
    all_minutes = sum(arm["cpu_seconds"] * len(arm["seeds"]) for arm in results["arms"]) / 60
    lines = [
        f"{scale['steps']} steps of {scale['prompts_per_step']} prompts × G "
        f"{scale['num_generations']} ({scale['steps'] * rollouts:,} rollouts an arm, unless its "
        f"heading says otherwise), "
        f"{scale['items']} benchmark items answered once greedily and twice sampled; "
        f"{min(cpu):.0f}–{max(cpu):.0f} s of one core an arm and seed, all of them together "
        f"{all_minutes:.0f} minutes of one. Rates are those of sampled answers, unless it says "
        f"greedy; in brackets their 95% intervals. *Until* is the number of "
        f"rollouts after which the redundant rate of the rollouts themselves, over {WINDOW} steps, "
        f"stays under a threshold, seed by seed "
        f"(– : not within the run). Rates by ability are sampled ones. *Q* is the mean number of "
        f"right rollouts in a group of {scale['num_generations']}: in the first {WINDOW} steps, at "
        f"its least, in the last {WINDOW}.",
        "",
        table(
            [
                "start",
                "prompts",
                "solvable without tools",
                f"mixed ({MIXED}–{KNOWN_SAMPLES - MIXED} of {KNOWN_SAMPLES} right)",
                "sampled calls on solvable",
            ],
            (
                [
                    name,
                    str(start["prompts"]),
                    str(start["solvable"]),
                    f"{start['mixed']}, {start['mixed_solvable']} of them solvable",
                    f"{start['called_on_solvable']:.1%}",
                ]
                for name, start in results["starts"].items()
            ),
        ),
    ]
    lines += ["", _overview(results["arms"])]
    for regime in dict.fromkeys(arm["regime"] for arm in results["arms"]):
        arms = [arm for arm in results["arms"] if arm["regime"] == regime]
        title = f"{regime[0].upper()}{regime[1:]}"
        lines += ["", "<details>", f"<summary>{title}: all figures</summary>"]
        lines += ["", _regime_table(arms)]
        for reference in dict.fromkeys(name for arm in arms for name in arm["against"]):
            compared = [arm for arm in arms if reference in arm["against"]]
            lines += ["", _comparison_table(compared, reference)]
        lines += ["", "</details>"]
    lines += ["", "![Calls in training: redundant (solid), necessary (dotted)](hdpo-curves.svg)"]
    lines += ["", "![The qualifying set in training](hdpo-q.svg)"]
    return "\n".join(lines)


def _overview(arms: Sequence[dict[str, Any]]) -> str:
    """Every arm in a line: its sampled rates, and when it was cured."""
    return table(
        [
            "regime",
            "arm",
            "accuracy",
            "redundant",
            "necessary",
            f"until under {THRESHOLDS[-1]:.0%}",
        ],
        (
            [
                arm["regime"],
                arm["name"],
                *(_percent(metric["value"]) for metric in arm["sampled"].values()),
                _counts(arm["rollouts_until_under"][str(THRESHOLDS[-1])]),
            ]
            for arm in arms
        ),
    )


def _regime_table(arms: Sequence[dict[str, Any]]) -> str:
    header = ["arm", "seeds"]
    for mode in ("greedy", "sampled"):
        header += [f"accuracy, {mode}", f"redundant, {mode}", f"necessary, {mode}"]
    return table(
        [
            *header,
            *(f"until under {t:.0%}" for t in THRESHOLDS),
            *(f"{what}: {' / '.join(ABILITIES)}" for what in ("redundant", "necessary")),
            "Q",
        ],
        (
            [
                arm["name"],
                str(len(arm["seeds"])),
                *(
                    _interval(metric)
                    for mode in ("greedy", "sampled")
                    for metric in arm[mode].values()
                ),
                *(_counts(found) for found in arm["rollouts_until_under"].values()),
                *(_by_ability(arm, f"{what}_call_rate") for what in ("redundant", "necessary")),
                _course(arm["curve"]["q"]),
            ]
            for arm in arms
        ),
    )


def _comparison_table(arms: Sequence[dict[str, Any]], reference: str) -> str:
    """Differences of the sampled rates, in points."""
    return table(
        [f"against {reference}, sampled", "accuracy", "redundant", "necessary"],
        ([arm["name"], *map(_points, arm["against"][reference].values())] for arm in arms),
    )


def _by_ability(arm: dict[str, Any], rate: str) -> str:
    measured = (arm["abilities"].get(ability, {}).get(rate, {}) for ability in ABILITIES)
    return " / ".join(_share(metric.get("value")) for metric in measured)


def _course(curve: Sequence[float]) -> str:
    """Mean of the first steps, the least of any, mean of the last steps."""
    first, last = (sum(steps) / len(steps) for steps in (curve[:WINDOW], curve[-WINDOW:]))
    return f"{first:.1f} · {min(curve):.1f} · {last:.1f}"


def _counts(counts: Sequence[int | None]) -> str:
    return " · ".join("–" if count is None else f"{count:,}" for count in counts)


def _interval(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "–"
    value, low, high = (100 * metric[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def _points(difference: dict[str, float] | None) -> str:
    if difference is None:
        return "–"
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} … {high:+.1f})"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) >= 5e-4 else "0"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
