"""Training that can be killed at any moment and run again with the same result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import BaseModel
from transformers import PrinterCallback, Trainer, TrainerCallback

from toolwise.progress import Log, Progress
from toolwise.storage import atomic_directory
from toolwise.training.hdpo.collapse import ALARM
from toolwise.training.kept import kept_checkpoints, kept_folder, kept_place
from toolwise.training.launcher.fsdp import fsdp_arguments, shards
from toolwise.training.launcher.memory import divided
from toolwise.training.policy import save_policy
from toolwise.training.settings import HdpoSettings, SftSettings

CURVE = "train_log.jsonl"
"""The training curve, written beside the model: one JSON object per logged step."""

_KEPT = "kept"

_OF_TRAINING = ("training_args.bin", "README.md")  # files that TRL writes beside a model

_STATE = "trainer_state.json"  # what transformers writes last into a checkpoint


def working_directory(
    out_dir: Path, settings: BaseModel, seed: int, inputs: Iterable[Path]
) -> Path:
    """Where the checkpoints of one training are kept, beside `out_dir`.

    Other settings, another seed or changed inputs get another directory, so that nothing is
    resumed that would not have led to the same result; what such a run left behind is deleted.
    """
    files = sorted(file for path in inputs for file in _files(path))
    identity = {
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "inputs": [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files],
    }
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    work = out_dir.with_name(f".{out_dir.name}.training-{digest}")
    for other in out_dir.parent.glob(f".{out_dir.name}.training-*"):
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    return work


def trainer_arguments(
    work: Path, seed: int, settings: SftSettings | HdpoSettings
) -> dict[str, Any]:
    """Arguments that every TRL trainer here shares."""
    cuda = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": str(work),
        "seed": seed,
        "data_seed": seed,
        "bf16": cuda,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "gradient_checkpointing": cuda,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return arguments | fsdp_arguments() if shards(settings) else arguments


def per_device(batch_size: int, accumulate: int = 1, section: str = "base.train") -> int:
    """Rows of a process's part of a batch; raises `InputError` where it does not divide."""
    return divided(batch_size, PartialState().num_processes, accumulate, section)


def train_and_publish(
    trainer: Trainer,
    work: Path,
    out_dir: Path,
    *,
    keep: int = 1,
    log: Log | None = None,
    progress: Progress | None = None,
) -> None:
    """Train from the last checkpoint in `work`, then put the model and its curve at `out_dir`.

    Args:
        trainer: what trains.
        work: where its checkpoints are, to resume from.
        out_dir: what gets the final model.
        keep: checkpoints to keep with the final one; those before it go to `kept_folder(out_dir)`,
            which is gone where there are none.
        log: gets the metrics of each step.
        progress: gets how far it is.
    """
    torch.set_flush_denormal(True)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Reporting(log, progress))
    trainer.add_callback(_Keeping(trainer, work / _KEPT, keep - 1))
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    final = work / "final"
    save_policy(trainer, final)
    if trainer.accelerator.is_main_process:
        with atomic_directory(out_dir) as folder:
            skip = shutil.ignore_patterns(*_OF_TRAINING)
            shutil.copytree(final, folder, ignore=skip, dirs_exist_ok=True)
            curve = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
            (folder / CURVE).write_text("".join(json.dumps(entry) + "\n" for entry in curve))
        if kept_checkpoints(work / _KEPT):
            with atomic_directory(kept_folder(out_dir)) as folder:
                shutil.copytree(work / _KEPT, folder, dirs_exist_ok=True)
        else:  # what is there is an earlier training's
            shutil.rmtree(kept_folder(out_dir), ignore_errors=True)
        shutil.rmtree(work)


def last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint in `work` that was written to its end; None where there is none."""
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for checkpoint in reversed(found):
        try:
            json.loads((checkpoint / _STATE).read_text())
        except (OSError, ValueError):
            shutil.rmtree(checkpoint, ignore_errors=True)  # several processes may be at it
        else:
            return str(checkpoint)
    return None


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


class _Keeping(TrainerCallback):
    """Keeps the newest checkpoints before the final one, without what only a training needs.

    Args:
        trainer: whose.
        folder: where.
        number: how many.
    """

    def __init__(self, trainer: Trainer, folder: Path, number: int) -> None:
        self._trainer = trainer
        self._folder = folder
        self._number = number

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A training that was killed between its checkpoint and what is kept of it."""
        if state.global_step and not kept_place(self._folder, state.global_step).exists():
            self.on_save(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint to resume from has been written."""
        if self._number == 0 or state.global_step >= state.max_steps:
            return
        unfinished = self._folder.with_name(f"{self._folder.name}-unfinished")
        save_policy(self._trainer, unfinished)
        if self._trainer.accelerator.is_main_process:
            self._folder.mkdir(exist_ok=True)
            for name in _OF_TRAINING:
                (unfinished / name).unlink(missing_ok=True)
            place = kept_place(self._folder, state.global_step)
            shutil.rmtree(place, ignore_errors=True)
            unfinished.rename(place)
            for old in kept_checkpoints(self._folder)[: -self._number]:
                shutil.rmtree(old.folder)


class _Reporting(TrainerCallback):
    """Hands what the trainer logs to the two callbacks of `toolwise.progress`."""

    def __init__(self, log: Log | None, progress: Progress | None) -> None:
        self._log = log
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Steps of a resumed training at which an alarm went on or off: its log is a new one."""
        if not self._log or not state.is_world_process_zero:
            return
        on = False
        for entry in state.log_history:
            if bool(entry.get(ALARM, on)) != on:
                on = not on
                self._log(_numbers(entry), entry["step"])

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """One logged step."""
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        metrics = _numbers(logs)
        if self._log:
            self._log(metrics, state.global_step)
        if self._progress:
            note = ", ".join(f"{key} {metrics[key]:.3f}" for key in _NOTED if key in metrics)
            if metrics.get(ALARM):
                note += ", tool use is collapsing"
            self._progress(state.global_step, state.max_steps, note)


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in logs.items() if isinstance(v, int | float) and k != "step"}


_NOTED = ("loss", "accuracy", "tool_call_rate")
