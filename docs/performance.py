"""What `bench/results` holds, for people: `python -m docs.performance`.

Writes the tables of docs/performance.md and a sentence of the README.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from toolwise.errors import InputError
from toolwise.markdown import fill, table
from toolwise.statistics import wilson_interval

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"


class Figures(dict[str, float]):
    """What was measured last of one part; one that is missing says how to get it."""

    def __init__(self, part: str, figures: Mapping[str, float]) -> None:
        super().__init__(figures)
        self._part = part

    def __missing__(self, name: str) -> float:
        raise InputError(f"bench/results/{self._part}.json has no {name}: {_how(self._part)}")


def measured(part: str) -> Figures:
    """The figures in `bench/results/PART.json`.

    Raises:
        InputError: there is no such file.
    """
    path = ROOT / "bench" / "results" / f"{part}.json"
    if not path.exists():
        raise InputError(f"{path} is missing: {_how(part)}")
    return Figures(part, json.loads(path.read_text(encoding="utf-8"))["figures"])


def _how(part: str) -> str:
    if part == "images":
        return "make test-images"
    return f"make demo, and then python -m bench {part}"


def tables() -> dict[str, str]:
    """The tables, by the name of their place in the page."""
    serve, rollouts = measured("serve"), measured("rollouts")
    return {
        "beside": _beside(rollouts, measured("engine"), measured("trainer_cost")),
        "rollouts": _rollouts(rollouts),
        "saved": _saved(serve),
        "sandbox": _sandbox(measured("sandbox")),
        "endpoint": _endpoint(serve),
        "data": _data(measured("runner"), measured("curation"), measured("deduplication")),
        "images": _images(measured("images")),
    }


def sentence() -> str:
    """What an answer of the frugal model saves, for the README."""
    serve = measured("serve")
    seconds, tokens = (f"{serve[f'share_of_{what}_saved']:.0%}" for what in ("latency", "tokens"))
    sft, hdpo = (f"{serve[f'{model}_right_per_answer']:.1%}" for model in ("sft", "hdpo"))
    return (
        f"Behind the endpoint, an answer of the HDPO model takes {seconds} less time and {tokens} "
        f"fewer tokens than one of the SFT model. Both answered the same {serve['questions']:.0f} "
        f"questions of one run; {hdpo} and {sft} are right "
        "([docs/performance.md](docs/performance.md#what-calling-less-saves))."
    )


def _beside(rollouts: Figures, engine: Figures, cost: Figures) -> str:
    steps = [
        [
            f"processor time of a training step on {cost['rollouts']:.0f} recorded rollouts, "
            f"`GRPOTrainer`; {what}",
            f"{cost['grpo_seconds']:.2f} s",
            f"{cost[f'{name}_seconds']:.2f} s",
            f"{1 / cost[f'{name}_ratio']:.2f}",
        ]
        for what, name in (
            ("`HDPOTrainer`", "hdpo"),
            ("`HDPOTrainer` with an agent", "hdpo_agent"),
        )
    ]
    return table(
        ["library; Toolwise", "library", "Toolwise", "times as fast"],
        [
            [
                "rollouts a second, TRL's own tool loop; the agent loop",
                f"{rollouts['trl_rollouts_per_second']:.0f}",
                f"{rollouts['toolwise_rollouts_per_second']:.0f}",
                f"{rollouts['ratio']:.1f}",
            ],
            [
                f"{engine['answers']:.0f} greedy answers to {engine['prompts']:.0f} prompts, "
                "`model.generate`; the engine",
                f"{engine['model_generate_seconds']:.2f} s",
                f"{engine['engine_seconds']:.2f} s",
                f"{engine['ratio']:.1f}",
            ],
            *steps,
        ],
        numbers=1,
    )


def _rollouts(figures: Figures) -> str:
    whole, model, images = (
        [figures[f"{side}_{part}"] for side in ("trl", "toolwise")]
        for part in ("seconds", "seconds_model", "seconds_images")
    )
    rest = [a - b - c for a, b, c in zip(whole, model, images, strict=True)]
    rows = {
        "all": whole,
        "model": model,
        "image preprocessing": images,
        "rendering, sampling, tools, the rest": rest,
    }
    return table(
        [f"seconds of a batch of {figures['rollouts']:.0f}", "TRL", "agent loop"],
        [[name, *(f"{seconds:.2f}" for seconds in row)] for name, row in rows.items()],
        numbers=1,
    )


def _saved(figures: Figures) -> str:
    def row(name: str, form: str) -> list[str]:
        sft, hdpo = (figures[f"{model}_{name}_per_answer"] for model in ("sft", "hdpo"))
        return [f"{sft:{form}}", f"{hdpo:{form}}", f"{1 - hdpo / sft:.0%}"]

    def right(model: str) -> str:
        rate, count = figures[f"{model}_right_per_answer"], int(figures["questions"])
        interval = wilson_interval(rate * count, count)
        return f"{rate:.1%} ({interval.low:.1%}–{interval.high:.1%})"

    needed, not_needed = (
        f"calls on the {figures[f'questions_{need}']:.0f} made {what}"
        for need, what in (
            ("calls_where_needed", "to need a tool"),
            ("calls_where_not", "not to need one"),
        )
    )
    return table(
        [f"an answer, mean of {figures['questions']:.0f} questions", "SFT", "HDPO", "saved"],
        [
            ["seconds", *row("seconds", ".3f")],
            ["tokens read and written, all turns", *row("tokens", ".0f")],
            ["calls", *row("calls", ".2f")],
            [needed, *row("calls_where_needed", ".2f")],
            [not_needed, *row("calls_where_not", ".2f")],
            ["right", right("sft"), right("hdpo"), ""],
        ],
        numbers=1,
    )


def _sandbox(figures: Figures) -> str:
    rows = {
        "new session with its first call, median": "new_session_with_first_call_ms_p50",
        "warm call, median": "warm_call_ms_p50",
        "warm call, p99": "warm_call_ms_p99",
    }
    compared = table(
        ["milliseconds", "Jupyter kernel", "sandbox"],
        [
            [what, *(f"{figures[f'{side}_{name}']:,.1f}" for side in ("jupyter", "sandbox"))]
            for what, name in rows.items()
        ],
        numbers=1,
    )
    left = ", ".join(
        f"{figures[f'soak_{what}_left']:.0f} {what}"
        for what in ("processes", "descriptors", "files")
    )
    return (
        f"{compared}\n\nAfter {figures['soak_calls']:,.0f} calls in a row over a pool of four, "
        f"with a new session after every few, it held {left} and "
        f"{figures['soak_memory_growth_mb']:.2f} MB more than before."
    )


def _endpoint(figures: Figures) -> str:
    return table(
        ["", "measured"],
        [
            ["median of answers without a tool, above upstream's", _ms(figures["added_p50_ms"])],
            ["their p99, above upstream's", _ms(figures["added_p99_ms"])],
            [
                f"requests a second from {figures['clients']:.0f} clients at once",
                f"{figures['load_requests_per_second']:.0f}",
            ],
            [
                f"errors among them, in {figures['load_seconds']:.0f} s",
                f"{figures['load_errors']:.0f}",
            ],
            [
                f"memory grown from the 15th second on, of {figures['load_mib_settled']:.0f} MiB",
                f"{figures['load_mib_grown']:.1f} MiB",
            ],
            [
                f"answers a second of the demo's model in process, {figures['batch_clients']:.0f} "
                "clients",
                f"{figures['continuous_requests_per_second']:.0f}",
            ],
            [
                "the same, one request at a time (`--concurrency 1`)",
                f"{figures['one_at_a_time_requests_per_second']:.0f}",
            ],
        ],
        numbers=1,
    )


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms"


def _data(runner: Figures, curation: Figures, near: Figures) -> str:
    return table(
        ["", "a second"],
        [
            [
                "benchmark items answered by a server that takes no time",
                f"{runner['items_per_second']:,.0f}",
            ],
            [
                "trajectories filtered, executing their calls again, on one core",
                f"{curation['rows_per_second_on_1']:,.0f}",
            ],
            ["the same, on two", f"{curation['rows_per_second_on_2']:,.0f}"],
            [
                f"{near['texts']:,.0f} prompts of text, compared with a benchmark of as many",
                f"{near['texts_per_second_one_core']:,.0f}",
            ],
            [
                f"{near['pictures']:.0f} prompts with a picture, likewise",
                f"{near['pictures_per_second_one_core']:,.0f}",
            ],
        ],
        numbers=1,
    )


def _images(figures: Figures) -> str:
    def row(name: str) -> list[str]:
        megabytes, seconds = (figures[f"{name} {what}"] for what in ("megabytes", "cpu_seconds"))
        return [f"`{name}`", f"{megabytes:,.0f}", f"{seconds / 60:.1f}"]

    names = [key.split()[0] for key in figures if key.endswith("megabytes")]
    return table(["image", "MB", "CPU minutes"], map(row, names), numbers=1)


if __name__ == "__main__":
    try:
        fill(PAGE, tables())
        fill(README, {"saved": sentence()})
    except InputError as error:
        sys.exit(f"{error}")
    print(f"wrote {PAGE} and {README}")
