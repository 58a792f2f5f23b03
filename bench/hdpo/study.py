"""Which arms with which seeds are to be trained, which have been, and what came of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from bench.hdpo.arms import Arm, Start, arms
from bench.hdpo.checkpoints import SOURCE, code_digest, material, prepare
from bench.hdpo.figures import collect
from bench.hdpo.scale import WORK, Scale

RESULTS = SOURCE / "bench" / "results" / "hdpo_arms.json"
PROCESSES = 2
ONLY_LOGGED = ("collapse.py", "monitoring.py")
"""Of the trainer: what decides what it logs, and nothing it learns."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed; `path` holds what came of it, once it is done."""

    arm: Arm
    seed: int
    path: Path


def jobs(scale: Scale) -> Iterator[Job]:
    """Every job of a study, seed by seed, so that all arms have a first seed early."""
    for seed in range(scale.seeds):
        for arm in arms():
            if re.search(scale.only, arm.label):
                yield Job(arm, seed, WORK / "arms" / f"{_identity(arm, seed, scale)}.json")


def run_study(scale: Scale) -> dict[str, Any]:
    """Train what has not been trained, two processes of one thread side by side; see `collect`.

    Finished arms are kept in `runs/bench/hdpo`, by their settings, where they started and the code
    that trained them: an interrupted study goes on, a larger one adds to a smaller one.
    """
    prepare(scale)
    command = [sys.executable, "-m", "bench.hdpo.worker", "arms", scale.model_dump_json()]
    train_missing(scale, command)
    results = finished(scale)
    write_results(results)
    return results


def train_missing(scale: Scale, worker: Sequence[str]) -> None:
    """Have the jobs done that are not done yet.

    What a worker that is killed leaves undone is taken up again, as long as any job gets done.

    Args:
        scale: which jobs.
        worker: command of a process that does jobs until none is left.
    """
    (WORK / "arms").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while missing := _missing(scale):
        running = [subprocess.Popen(worker, cwd=SOURCE, env=environment) for _ in range(PROCESSES)]
        codes = [process.wait() for process in running]
        if any(code > 0 for code in codes) or _missing(scale) == missing:
            sys.exit("a worker of the study failed; its output is above. Run it again to go on")


def _missing(scale: Scale) -> list[str]:
    return [job.path.name for job in jobs(scale) if not job.path.exists()]


def write_results(results: dict[str, Any]) -> None:
    """Write `bench/results/hdpo_arms.json`, an arm a line."""
    head = {name: value for name, value in results.items() if name != "arms"}
    lines = ",\n".join(json.dumps(arm) for arm in results["arms"])
    RESULTS.write_text(f'{json.dumps(head)[:-1]}, "arms": [\n{lines}\n]}}\n')


def finished(scale: Scale) -> dict[str, Any]:
    """What came of all jobs of this size that are done, whichever are asked for by `only`."""
    scale = scale.model_copy(update={"only": ""})
    done = [(job.arm, job.seed, job.path) for job in jobs(scale) if job.path.exists()]
    if not done:
        sys.exit(f"no arm of this study is done under {WORK}: python -m bench.hdpo trains them")
    records = [(arm, seed, json.loads(path.read_text())) for arm, seed, path in done]
    made = material(scale)
    known = {start: json.loads(made.known(start).read_text()) for start in get_args(Start)}
    return collect(records, known, scale)


def _identity(arm: Arm, seed: int, scale: Scale) -> str:
    trained = asdict(arm)
    del trained["regime"], trained["name"], trained["longer"]
    identity = {
        "arm": {**trained, "changes": arm.settings(scale).model_dump(mode="json")},
        "seed": seed,
        "material": material(scale).folder.name,
        "code": _training_code(),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _training_code() -> str:
    trainer = (SOURCE / "toolwise" / "training" / "hdpo").glob("*.py")
    here = Path(__file__).parent
    return code_digest(
        [
            *(file for file in trainer if file.name not in ONLY_LOGGED),
            here / "training.py",
            here / "remembering.py",
        ]
    )
