"""Write the tables of docs/performance.md from `bench/results`: `python -m docs.performance`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from toolwise.markdown import fill, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"

MODELS = ("sft", "hdpo")

Figures = Mapping[str, float]


def measured(part: str) -> Figures:
    """What `python -m bench PART` measured last."""
    return json.loads((ROOT / f"bench/results/{part}.json").read_text())["figures"]


def tables() -> dict[str, str]:
    """The tables, by the name of their place in the page."""
    serve, rollouts = measured("serve"), measured("rollouts")
    return {
        "beside": _beside(serve, rollouts),
        "rollouts": _rollouts(rollouts),
        "sandbox": _sandbox(measured("sandbox")),
        "endpoint": _endpoint(serve),
        "saved": _saved(serve),
        "data": _data(),
        "images": _images(measured("images")),
    }


def _beside(serve: Figures, rollouts: Figures) -> str:
    """Ours and the library's own way, measured in turn in one run."""
    engine, cost = measured("engine"), measured("trainer_cost")
    return table(
        ["what", "Toolwise", "beside it", "ratio"],
        [
            [
                "rollouts a second: agent loop; TRL's own tool loop",
                f"{rollouts['toolwise_rollouts_per_second']:.0f}",
                f"{rollouts['trl_rollouts_per_second']:.0f}",
                f"{rollouts['ratio']:.1f}",
            ],
            [
                "96 greedy answers, 8 to a prompt: engine; `model.generate`",
                f"{engine['engine_seconds']:.2f} s",
                f"{engine['model_generate_seconds']:.2f} s",
                f"{engine['ratio']:.1f}",
            ],
            [
                "training step on the same rollouts: `HDPOTrainer`; `GRPOTrainer`",
                f"{cost['hdpo_seconds']:.2f} s",
                f"{cost['grpo_seconds']:.2f} s",
                f"{cost['hdpo_ratio']:.3f}",
            ],
            [
                "answers a second for 32 clients: batched; one at a time",
                f"{serve['continuous_requests_per_second']:.0f}",
                f"{serve['one_at_a_time_requests_per_second']:.0f}",
                f"{serve['continuous_times_one_at_a_time']:.1f}",
            ],
        ],
        numbers=1,
    )


def _rollouts(figures: Figures) -> str:
    parts = {"model": "_seconds_model", "image preprocessing": "_seconds_images"}
    rows = {"all": [figures[f"{side}_seconds"] for side in ("toolwise", "trl")]}
    rows |= {
        n: [figures[f"{side}{key}"] for side in ("toolwise", "trl")] for n, key in parts.items()
    }
    rest = [whole - model - images for whole, model, images in zip(*rows.values(), strict=True)]
    rows["rendering, sampling, tools, the rest"] = rest
    return table(
        ["seconds of a batch of 192", "agent loop", "TRL"],
        [[name, *(f"{second:.2f}" for second in row)] for name, row in rows.items()],
        numbers=1,
    )


def _sandbox(figures: Figures) -> str:
    both: dict[str, Callable[[str], str]] = {
        "new session with its first call, median": lambda side: (
            f"{figures[f'{side}_new_session_with_first_call_ms_p50']:,.1f} ms"
        ),
        "warm call, median": lambda side: f"{figures[f'{side}_warm_call_ms_p50']:.1f} ms",
        "warm call, p99": lambda side: f"{figures[f'{side}_warm_call_ms_p99']:.1f} ms",
    }
    return table(
        ["", "sandbox", "Jupyter kernel"],
        [[name, show("sandbox"), show("jupyter")] for name, show in both.items()],
        numbers=1,
    )


def _endpoint(figures: Figures) -> str:
    return table(
        ["", "measured"],
        [
            ["added to an answer without a tool, median", f"{figures['added_p50_ms']:.1f} ms"],
            ["the same, p99", f"{figures['added_p99_ms']:.1f} ms"],
            [
                f"requests a second from {figures['clients']:.0f} clients at once",
                f"{figures['load_requests_per_second']:.0f}",
            ],
            [
                f"errors among them, in {figures['load_seconds']:.0f} s",
                f"{figures['load_errors']:.0f}",
            ],
            [
                f"memory grown meanwhile, of {figures['load_mib_settled']:.0f} MiB",
                f"{figures['load_mib_grown']:.1f} MiB",
            ],
        ],
        numbers=1,
    )


def _saved(figures: Figures) -> str:
    shown = {"seconds": ".3f", "tokens": ".0f", "calls": ".2f", "right": ".1%"}
    rows = [
        [name, *(f"{figures[f'{model}_{name}_per_answer']:{form}}" for model in MODELS)]
        for name, form in shown.items()
    ]
    saved = [
        f"{figures['share_of_latency_saved']:.0%}",
        f"{figures['share_of_tokens_saved']:.0%}",
        f"{1 - figures['hdpo_calls_per_answer'] / figures['sft_calls_per_answer']:.0%}",
        "–",
    ]
    return table(
        [f"of an answer, mean of {figures['questions']:.0f}", "SFT", "HDPO", "saved"],
        [[*row, share] for row, share in zip(rows, saved, strict=True)],
        numbers=1,
    )


def _data() -> str:
    runner, curation = measured("runner"), measured("curation")
    near = measured("deduplication")
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
            ["the same, on two cores", f"{curation['rows_per_second_on_2']:,.0f}"],
            [
                "prompts compared with a benchmark of as many, by their words, on one core",
                f"{near['texts_per_second_one_core']:,.0f}",
            ],
            ["the same, by their pictures too", f"{near['pictures_per_second_one_core']:,.0f}"],
        ],
        numbers=1,
    )


def _images(figures: Figures) -> str:
    def row(name: str) -> list[str]:
        megabytes, seconds = (figures[f"{name} {what}"] for what in ("megabytes", "cpu_seconds"))
        return [f"`{name}`", f"{megabytes:,.0f}", f"{seconds / 60:.1f}"]

    names = [key.split()[0] for key in figures if key.endswith("megabytes")]
    return table(["image", "MB", "minutes of one core"], map(row, names), numbers=1)


if __name__ == "__main__":
    fill(PAGE, tables())
    print(f"wrote {PAGE}")
