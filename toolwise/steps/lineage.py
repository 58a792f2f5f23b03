"""What a step was made from: its run is linked with its data and its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from toolwise.steps.running import Step

Work = Callable[[Step], dict[str, Path]]

STAGES = {"base-model": "base", "train-sft": "sft", "train-hdpo": "hdpo"}
"""The steps that make a checkpoint, and what the checkpoint is called."""

_CHECKPOINTS = ("model", "checkpoint")

_CURVE = "train_log.jsonl"  # beside the model that a training has made


def linked(work: Work) -> Work:
    """Have the step's run say which data and checkpoint it read, and which checkpoint it made."""

    @wraps(work)
    def with_links(step: Step) -> dict[str, Path]:
        context = "training" if step.label in STAGES else "curation"
        for name, path in step.inputs.items():
            if name in _CHECKPOINTS:
                step.run.reads_model(path, path.name)
            else:
                step.run.dataset(path / "curated.parquet" if path.is_dir() else path, context)
        outputs = work(step)
        for name in _CHECKPOINTS:
            if name in outputs:
                said = licence(outputs[name])
                tags = {"toolwise.licence": said} if said else None
                # A curve in a base checkpoint that was fetched would be of somebody else's making.
                last = 0 if step.label == "base-model" else last_step(outputs[name])
                stage, at = STAGES[step.label], step.address
                step.run.writes_model(outputs[name], stage, step=last, tags=tags, address=at)
        return outputs

    return with_links


def last_step(checkpoint: Path) -> int:
    """The training step a checkpoint is from, as its curve says; 0 of one without a curve."""
    curve = checkpoint / _CURVE
    lines = curve.read_text(encoding="utf-8").splitlines() if curve.exists() else []
    return max((int(json.loads(line).get("step", 0)) for line in lines), default=0)


def licence(checkpoint: Path) -> str:
    """What the front matter of the checkpoint's README says; empty where it says nothing."""
    readme = checkpoint / "README.md"
    if not readme.exists():
        return ""
    head, _, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    if head.strip():
        return ""
    for line in rest.partition("\n---")[0].splitlines():
        key, _, value = line.partition(":")
        if key == "license":
            return value.strip()
    return ""
