"""What every process of a `TrainJob` runs: a training step, on inputs that travel by address.

`torchrun -m toolwise.steps.node '{"step": "train-hdpo", …}'`. The first process says on its
standard output how far it is; whoever started the `TrainJob` reads it there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from toolwise.errors import ToolwiseError
from toolwise.events import Event, EventWriter
from toolwise.steps.fitting import needs
from toolwise.steps.functions import train_hdpo, train_sft
from toolwise.steps.running import WORK_VARIABLE, Step
from toolwise.storage import local_copy, publish
from toolwise.training.kept import kept_address, kept_folder
from toolwise.training.launcher.following import ERROR
from toolwise.training.launcher.trainjob import NodeWork

_WORK = {"train-sft": train_sft, "train-hdpo": train_hdpo}
_MARK = "toolwise: "


class Word(BaseModel):
    """One thing the first process says: metrics of a step, or progress."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, float] = {}
    step: int = 0
    done: int = 0
    total: int = 0
    note: str = ""


def word_in(line: str) -> Word | None:
    """What a line of the log says to whoever follows; None where it is for people."""
    if not line.startswith(_MARK):
        return None
    try:
        return Word.model_validate_json(line.removeprefix(_MARK))
    except ValidationError:
        return None


def work(job: NodeWork) -> None:
    """Fetch the inputs, do the step, and publish its checkpoint.

    The first process of each node checks the step's needs against the node itself, before any other
    takes of its memory: whoever made the `TrainJob` knew only what the profile says of it.

    Raises:
        ToolwiseError: as the step raises it, or the step does not fit on this node.
    """
    from toolwise.training.launcher.estimate import check
    from toolwise.training.launcher.machine import first_of_node_first

    inputs = {name: local_copy(uri) for name, uri in job.inputs.items()}
    folder = Path(os.environ[WORK_VARIABLE]) / Path(job.output).name
    folder.mkdir(parents=True, exist_ok=True)
    first = os.environ.get("RANK", "0") == "0"
    step = Step(
        label=job.step,
        settings=job.settings,
        seed=job.seed,
        inputs=inputs,
        folder=folder,
        events=EventWriter(job.step, _say_event if first else _say_nothing),
        run=cast(Any, _Run(first)),
    )
    first_of_node_first(lambda: check(needs(step)))
    outputs = _WORK[job.step](step)
    if first:
        kept = kept_folder(outputs["checkpoint"])
        if kept.exists():
            publish(kept, kept_address(job.output))
        publish(outputs["checkpoint"], job.output)


class _Run:
    """What a step logs to, where the MLflow run is in the hands of whoever follows."""

    def __init__(self, first: bool) -> None:
        self._first = first

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        if self._first:
            _say(Word(metrics=dict(metrics), step=step))

    def tag(self, *_: str) -> None:
        """Whoever follows tags the run, by the same metrics."""


def _say(word: Word) -> None:
    print(_MARK + word.model_dump_json(exclude_defaults=True), flush=True)


def _say_event(event: Event) -> None:
    _say(Word(done=event.done, total=event.total, note=event.note))


def _say_nothing(event: Event) -> None:
    pass


def main(arguments: list[str]) -> int:
    """Be one process of a `TrainJob`; returns its exit status."""
    try:
        work(NodeWork.model_validate_json(arguments[0]))
    except ToolwiseError as error:
        print(f"{ERROR}{error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
