"""What every step needs around its work.

A work folder that a killed step finds again, progress for whoever watches, and an MLflow run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from toolwise.errors import InputError
from toolwise.events import EventSink, EventWriter
from toolwise.storage import atomic_file, publish

if TYPE_CHECKING:
    from toolwise.tracking import PipelineRun, Run

WORK_VARIABLE = "TOOLWISE_WORK"
"""Environment variable naming the folder that holds the work folders of all steps."""

RUN_VARIABLE = "TOOLWISE_RUN"
"""Environment variable naming the pipeline run; its steps log under one MLflow run."""

SettingsType = TypeVar("SettingsType", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Step:
    """One step at work.

    Args:
        label: its name as people see it (`evaluate hdpo`).
        settings: its section of the profile, as JSON.
        seed: the run's seed.
        inputs: paths by input name.
        folder: where it works; the same for the same code, settings, seed and inputs.
        events: whom it tells how far it is.
        run: its MLflow run.
        address: where its checkpoint is published, if not on this machine.
    """

    label: str
    settings: str
    seed: int
    inputs: dict[str, Path]
    folder: Path
    events: EventWriter
    run: Run
    address: str = ""

    def settings_as(self, settings_type: type[SettingsType]) -> SettingsType:
        """The settings, checked."""
        return settings_type.model_validate_json(self.settings)

    def path(self, name: str) -> Path:
        """Path of the input `name`."""
        return self.inputs[name]


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that has done its work.

    Args:
        label: its name as people see it.
        outputs: where each output stands.
        seconds: how long it took.
    """

    label: str
    outputs: dict[str, Path]
    seconds: float

    def publish(self, **targets: str) -> dict[str, Any]:
        """Put each named output at its target; returns the metadata its artifact should carry.

        Where work folders are kept, that is a link: no copy, and the same input to the next step
        whenever the pipeline runs again.
        """
        for name, target in targets.items():
            if WORK_VARIABLE in os.environ:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                Path(target).symlink_to(self.outputs[name])
            else:
                publish(self.outputs[name], target)
        return {"step": self.label, "seconds": self.seconds}


def perform(
    work: Callable[[Step], dict[str, Path]],
    label: str,
    settings: str,
    seed: int,
    inputs: dict[str, str],
    *,
    again: bool = False,
    sink: EventSink | None = None,
    address: str = "",
) -> FinishedStep:
    """Do a step's work, or find it done by an earlier attempt with the same code and inputs.

    Args:
        work: does it, and says where each output stands.
        label: the step's name as people see it.
        settings: its section of the profile, as JSON.
        seed: the run's seed.
        inputs: paths by input name.
        again: do it even if it has been done.
        sink: who hears of its progress; by default whom the environment names.
        address: where its checkpoint is published. A pod writes it to a folder, which goes with the
            pod; on one machine both are the same.

    Raises:
        ToolwiseError: as the step raises it; the watcher is told before.
    """
    paths = {key: Path(value).resolve() for key, value in inputs.items()}
    folder = _work_folder(label, settings, seed, paths)
    events = EventWriter(label, sink) if sink else EventWriter.of_environment(label)
    with _sole_user_of(folder, label):
        record = folder / "done.json"
        if record.exists() and not again:
            done = _Done.model_validate_json(record.read_bytes())
            events.reused(done.seconds, folder)
        else:
            events.started()
            started = time.monotonic()
            try:
                with _tracked(label, settings, seed, folder.name) as run:
                    remote = address if "://" in address else ""
                    outputs = work(Step(label, settings, seed, paths, folder, events, run, remote))
            except BaseException as error:
                events.failed(str(error) or type(error).__name__)
                raise
            done = _Done(seconds=round(time.monotonic() - started, 2), outputs=outputs)
            with atomic_file(record) as partial:
                partial.write_text(done.model_dump_json())
            events.finished(done.seconds, folder)
    return FinishedStep(label, done.outputs, done.seconds)


@contextmanager
def _tracked(label: str, settings: str, seed: int, attempt: str) -> Iterator[Run]:
    """The step's MLflow run, under the one of the pipeline run that the environment names."""
    from toolwise import tracking

    params = {"seed": seed, **json.loads(settings)}
    with tracking.step(pipeline_run(), label, params=params, attempt=attempt) as run:
        yield run


def experiment_name() -> str:
    """The profile's name, which is the MLflow experiment's and the registered model's too."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "toolwise")


def pipeline_run() -> PipelineRun:
    """The pipeline run that the environment names; its MLflow run is opened by its first step."""
    from toolwise.tracking import PipelineRun

    return PipelineRun(experiment_name(), os.environ.get(RUN_VARIABLE, "steps by hand"))


class _Done(BaseModel):
    """What `done.json` in a work folder says."""

    seconds: float
    outputs: dict[str, Path]


def _work_folder(label: str, settings: str, seed: int, inputs: dict[str, Path]) -> Path:
    """The folder a step works in: one per code, settings, seed and inputs."""
    root = Path(os.environ.get(WORK_VARIABLE) or Path(tempfile.gettempdir()) / "toolwise")
    paths = {name: str(path) for name, path in inputs.items()}
    identity = json.dumps([code_digest(), label, settings, seed, paths], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return root.absolute() / label.replace(" ", "-") / digest


@cache
def code_digest() -> str:
    """Digest of the library a step runs, so that none passes off what older code made."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        shown = name.startswith(("cli/", "console.py"))
        if path.is_file() and "__pycache__" not in name and not shown:
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextmanager
def _sole_user_of(folder: Path, label: str) -> Iterator[None]:
    """Keep a second run out of the folder; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{label} is already running in {folder}; wait for it to end, or stop it"
            ) from None
        yield
