"""What the arms start from: the demo's SFT model and two others of its base model, prompts, items.

Made once and kept. `make demo` has to be done.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from bench.demo import demo_output
from bench.hdpo.arms import Start
from bench.hdpo.scale import WORK, Scale
from toolwise.data import Trajectory
from toolwise.data.parquet import write_tasks, write_trajectories
from toolwise.storage import atomic_directory, atomic_file, content_digest
from toolwise.synthetic.environment import make_environment, write_signboard
from toolwise.synthetic.settings import SignboardSettings
from toolwise.training.settings import SftSettings

SOURCE = Path(__file__).parents[2]
LIBRARIES = ("torch", "transformers", "trl")
"""Whose versions decide a result, as the code does."""
SEED = 0
"""Of everything made here: the arms differ in their seed, not in where they start."""
COLD_STARTS: tuple[Start, ...] = ("early", "reflex")
"""Those that are trained here, side by side."""


@dataclass(frozen=True)
class Material:
    """Where everything stands that an arm is trained and measured with."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "data" / "corpus.jsonl"

    @property
    def prompts(self) -> Path:
        return self.folder / "data" / "prompts.parquet"

    @property
    def items(self) -> Path:
        return self.folder / "data" / "items.parquet"

    def trajectories(self, start: Start) -> Path:
        return self.folder / "data" / f"{start}.parquet"

    def start(self, start: Start) -> Path:
        return demo_output("train-sft", "checkpoint") if start == "mild" else self.folder / start

    def known(self, start: Start) -> Path:
        """What the start knows of each prompt, `{id: {"solvable": …, "mixed": …}}`."""
        return self.folder / f"{start}.json"


@cache
def material(scale: Scale) -> Material:
    """Where the material of a study of this size stands, whether it has been made or not."""
    size = scale.model_dump(include={"prompts", "items", *COLD_STARTS})
    taken = [
        content_digest(demo_output(*output))
        for output in (("base-model", "model"), ("train-sft", "checkpoint"))
    ]
    own = (Path(__file__), Path(__file__).with_name("measuring.py"))
    code = [code_digest([*own, *answering_code()]), *(version(name) for name in LIBRARIES)]
    identity = hashlib.sha256(json.dumps([size, code, taken]).encode()).hexdigest()[:12]
    return Material(WORK / f"start-{identity}")


def answering_code() -> Iterator[Path]:
    """The code that decides what a checkpoint is and answers, and whether that is right."""
    for pattern in ("synthetic/*.py", "training/*.py", "agent/*.py", "data/*.py", "tools/**/*.py"):
        yield from (SOURCE / "toolwise").glob(pattern)
    yield SOURCE / "toolwise" / "evaluation" / "metrics.py"


def code_digest(files: Iterable[Path]) -> str:
    """Of what the files do: their syntax trees, so that comments and docstrings do not count."""
    trees = [ast.dump(_without_docstrings(ast.parse(file.read_text()))) for file in sorted(files)]
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """A string that is a statement by itself does nothing."""
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [statement for statement in body if not _is_docstring(statement)]
    return tree


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def prepare(scale: Scale) -> Material:
    """Make what is missing; the cold starts in a process each."""
    made = material(scale)
    made.folder.mkdir(parents=True, exist_ok=True)
    if not made.items.exists():
        _write_data(made, scale)
    command = [sys.executable, "-m", "bench.hdpo.worker", "start", scale.model_dump_json()]
    missing = [start for start in get_args(Start) if not made.known(start).exists()]
    running = [subprocess.Popen([*command, start], cwd=SOURCE) for start in missing]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit("a cold start failed; its output is above")
    return made


def cold_start(made: Material, start: Start, scale: Scale) -> None:
    """Train a cold start that is not there, and ask it which prompts it solves, and how."""
    from bench.hdpo.measuring import ask_prompts
    from toolwise.training.sft import train_sft

    if not made.start(start).exists():
        settings = SftSettings(
            steps=getattr(scale, start), batch_size=32, accumulate=2, freeze_vision=True
        )
        base = demo_output("base-model", "model")
        train_sft(base, made.trajectories(start), made.start(start), settings, SEED)
    known = ask_prompts(made.start(start), made.prompts, made.corpus)
    with atomic_file(made.known(start)) as file:
        file.write_text(json.dumps(known))


def _write_data(made: Material, scale: Scale) -> None:
    settings = SignboardSettings(rl_tasks=scale.prompts, benchmark_items=scale.items)
    environment = make_environment(SEED, settings)
    clean = [t for t in environment.trajectories if "flaw" not in t.task.metadata]
    reflex = [t for t in clean if _calls(t) or t.task.metadata.get("tools") == "none"]
    write_signboard(made.folder / "environment", SEED, settings)
    with atomic_directory(made.folder / "data") as folder:
        write_trajectories(folder / "early.parquet", clean)
        write_trajectories(folder / "reflex.parquet", reflex)
        write_tasks(folder / "prompts.parquet", environment.rl_tasks)
        write_tasks(folder / "items.parquet", environment.benchmark)
        (made.folder / "environment" / "corpus.jsonl").rename(folder / "corpus.jsonl")


def _calls(trajectory: Trajectory) -> bool:
    return any(message.get("tool_calls") for message in trajectory.messages)
