"""Write the tables of docs/sizing.md: `python -m docs.sizing`.

Arithmetic from measured figures (bench/results, README.md) and from the assumptions below; nothing
here has been measured on a GPU.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from docs.performance import measured as measured_figures
from toolwise.markdown import fill, table
from toolwise.profile import Profile, load_profile
from toolwise.training.hardware import GPUS
from toolwise.training.launcher.duration import UTILISATION, token_operations, token_seconds
from toolwise.training.launcher.estimate import check, estimate_profile
from toolwise.training.launcher.shape import ModelShape, shape_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "sizing.md"
GPU = GPUS["h100-80gb"]

# Assumptions about a request. Put your own here.
READ = 1500
"""Tokens of question and picture; one picture of a megapixel is about a thousand of them."""
WRITTEN = 300
"""Tokens the model writes in a turn."""
RESULT = 300
"""Tokens of a tool's result."""
RUNNING = 64
"""Requests a GPU works on at once, which is what its answers' speed is paid with."""
BUSY = 0.6
"""Share of what it could do that a GPU or a core does on average: peaks need the rest."""
PICTURE_MS = 10.0
"""Milliseconds of a core that fetching and decoding a picture take the agent."""
CODE_MS = 50.0
"""Milliseconds of a core that the code of a call takes."""
CONCURRENCY = 64
"""Requests an agent answers at a time, `concurrency` of its settings."""
RATES = (10, 1_000, 100_000)


class Measured(NamedTuple):
    """What was measured, on the machine that bench/results names.

    Args:
        agent_ms: milliseconds of a core the endpoint takes for an answer without a tool.
        session_ms: milliseconds until a new sandbox session has answered its first call.
        frugal, lavish: tool calls per answer of the HDPO and the SFT model of the demo.
    """

    agent_ms: float
    session_ms: float
    frugal: float
    lavish: float


def measured() -> Measured:
    """The figures as the repository has them."""
    return Measured(
        measured_figures("serve")["endpoint_cpu_ms_per_request"],
        measured_figures("sandbox")["sandbox_new_session_with_first_call_ms_p50"],
        _calls("HDPO"),
        _calls("SFT"),
    )


class Served(NamedTuple):
    """What so many requests a minute take.

    Args:
        gpus: at the frugal model's calls.
        lavish_gpus: at the calls of a model that calls by reflex.
        seconds: an answer takes.
        in_flight: requests being answered at a moment.
        agents: pods that answer them.
        agent_cores, sandbox_cores: cores in use on average, peaks paid for.
    """

    gpus: int
    lavish_gpus: int
    seconds: float
    in_flight: float
    agents: int
    agent_cores: float
    sandbox_cores: float


def serve(rate: float, shape: ModelShape, figures: Measured) -> Served:
    """What `rate` requests a minute take.

    Args:
        rate: requests a minute.
        shape: of the model.
        figures: what was measured.
    """
    second = rate / 60
    seconds = _answer_seconds(shape, figures.frugal)
    in_flight = second * seconds
    agent_ms = (1 + figures.frugal) * figures.agent_ms + PICTURE_MS
    return Served(
        _gpus(second, shape, figures.frugal),
        _gpus(second, shape, figures.lavish),
        seconds,
        in_flight,
        max(2, math.ceil(in_flight / (CONCURRENCY * BUSY))),
        second * agent_ms / 1e3 / BUSY,
        second * figures.frugal * (figures.session_ms + CODE_MS) / 1e3 / BUSY,
    )


def _gpus(second: float, shape: ModelShape, calls: float) -> int:
    read, written = _tokens(calls)
    reading = read * token_operations(shape, read) / (GPU.flops * UTILISATION)
    writing = written * token_seconds(shape, GPU, RUNNING, read + written) / RUNNING
    return math.ceil(second * (reading + writing) / BUSY)


def _answer_seconds(shape: ModelShape, calls: float) -> float:
    read, written = _tokens(calls)
    return written * token_seconds(shape, GPU, RUNNING, read + written)


def _tokens(calls: float) -> tuple[float, float]:
    """Tokens of an answer that are read, and written: a call adds a result and a turn."""
    return READ + calls * RESULT, (1 + calls) * WRITTEN


class Trained(NamedTuple):
    """What the two trainings take.

    Args:
        gpus: of either.
        what: profile and changes, in words.
        sft, hdpo: hours.
        gpu_hours: of both.
    """

    gpus: int
    what: str
    sft: float
    hdpo: float
    gpu_hours: float


def train() -> list[Trained]:
    """The trainings on 1, 8 and 64 GPUs; what does not fit raises `InputError`."""
    small, large = load_profile("qwen3-vl-2b"), load_profile("qwen3-vl-8b")
    wide = "`qwen3-vl-8b`, `hardware.nodes: 8`, `sft.accumulate: 1`, `hdpo.accumulate: 32`"
    return [
        _trained(small, 1, "`qwen3-vl-2b`"),
        _trained(large, 1, "`qwen3-vl-8b`"),
        _trained(_wider(large), 8, wide),
    ]


def _wider(profile: Profile) -> Profile:
    """On eight nodes, each process with a conversation at a time as before."""
    assert profile.hardware is not None
    hardware = profile.hardware.model_copy(update={"nodes": 8})
    steps = {
        "sft": profile.sft.model_copy(update={"hardware": hardware, "accumulate": 1}),
        "hdpo": profile.hdpo.model_copy(update={"hardware": hardware, "accumulate": 32}),
    }
    return profile.model_copy(update=steps)


def _trained(profile: Profile, nodes: int, what: str) -> Trained:
    sft, hdpo = estimate_profile(profile)
    for estimate in (sft, hdpo):
        check(estimate)
    assert sft.usual is not None
    assert hdpo.usual is not None
    both = sft.usual.gpu_hours + hdpo.usual.gpu_hours
    return Trained(nodes * profile.hdpo.processes, what, sft.usual.hours, hdpo.usual.hours, both)


def tables() -> dict[str, str]:
    """The tables, by the name of their place in the page."""
    figures = measured()
    checkpoint = load_profile("qwen3-vl-8b").base.checkpoint
    assert checkpoint is not None
    shape = shape_of(checkpoint)
    return {
        "measured": table(
            ("figure", "value", "from"),
            [
                (
                    "the endpoint's own work for an answer without a tool",
                    f"{figures.agent_ms:.1f} ms of a core",
                    "`bench/results/serve.json`",
                ),
                (
                    "a new sandbox session with its first call",
                    f"{figures.session_ms:.1f} ms",
                    "`bench/results/sandbox.json`",
                ),
                (
                    "calls per answer, HDPO and SFT model of the demo",
                    f"{figures.frugal:.2f} and {figures.lavish:.2f}",
                    "README.md, mean of the seeds",
                ),
            ],
        ),
        "training": table(
            ("GPUs", "profile", "SFT", "HDPO", "GPU hours"),
            [
                (
                    str(row.gpus),
                    row.what,
                    f"{row.sft:.1f} h",
                    f"{row.hdpo:.1f} h",
                    f"{row.gpu_hours:,.0f}",
                )
                for row in train()
            ],
        ),
        "serving": table(
            (
                *("requests a minute", "GPUs", "GPUs, by reflex", "answer", "in flight"),
                *("agents", "agents' cores", "sandbox cores"),
            ),
            [_serving_row(rate, serve(rate, shape, figures)) for rate in RATES],
        ),
    }


def _serving_row(rate: int, served: Served) -> tuple[str, ...]:
    return (
        f"{rate:,}",
        f"{served.gpus:,}",
        f"{served.lavish_gpus:,}",
        f"{served.seconds:.1f} s",
        f"{served.in_flight:,.0f}",
        f"{served.agents:,}",
        f"{served.agent_cores:.2g}" if served.agent_cores < 1 else f"{served.agent_cores:.0f}",
        f"{served.sandbox_cores:.2g}"
        if served.sandbox_cores < 1
        else f"{served.sandbox_cores:.0f}",
    )


def _calls(stage: str) -> float:
    """Mean over the seeds of the last column of the README's table."""
    rows = re.findall(rf"^\| \d+ \| {stage} \|.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return mean(float(row.split("|")[-2].split()[0]) for row in rows)


if __name__ == "__main__":
    fill(PAGE, tables())
    print(f"wrote {PAGE}")
