"""A GRPO trainer whose checkpoints hold everything the steps after them depend on.

TRL's own leave out the rollouts that later steps reuse and how far they are used up, the place in
the shuffled prompts after the first epoch, metrics and losses not logged yet, and a reference
model that has moved. A run resumed from one of these repeats the run that was not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.utils import logging
from trl.trainer.grpo_trainer import GRPOTrainer

from toolwise.agent import TokenRecord

_logger = logging.get_logger(__name__)


class EpochOrder(Sampler[int]):
    """TRL's order of prompts as a function of the epoch.

    TRL's sampler draws one permutation after the other, so that in a resumed run every epoch
    would have the order of another one.

    Args:
        sampler: TRL's.
        epoch: says which epoch begins.
    """

    def __init__(self, sampler: Any, epoch: Callable[[], int]) -> None:
        self._sampler = sampler
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self._sampler.shuffle:
            self._sampler.generator.manual_seed(self._sampler.seed)
            for _ in range(self._epoch()):
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


class ResumableGRPOTrainer(GRPOTrainer):
    """TRL's trainer, resumed exactly; nothing else is changed."""

    args: Any  # a GRPOConfig

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        sampler = super()._get_train_sampler(dataset)
        return EpochOrder(sampler, lambda: int(self.state.epoch or 0))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch's steps; transformers would take one more than there are to take."""
        if self.state.global_step >= self.state.max_steps:  # killed after its last checkpoint
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # Not `_save_checkpoint`: these run on every process, before `trainer_state.json` is written,
    # which is what marks a checkpoint as complete.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        cycle = self.args.steps_per_generation * self.num_iterations
        progress = {
            "step": self._step,
            "rollouts": self._buffered_inputs if self._step % cycle else None,
            "metrics": dict(self._metrics["train"]),
            "loss": self._tr_loss,
            "logged": self._globalstep_last_logged,
            "entropy": (self.entropy_coef, self._last_world_entropy),
        }
        torch.save(progress, self._progress_file(output_dir))
        if self.args.sync_ref_model:  # gathered by all processes where it is sharded
            reference = self.accelerator.get_state_dict(self.ref_model)
            if self.accelerator.is_main_process:
                torch.save(reference, Path(output_dir, _REFERENCE))
        self.accelerator.wait_for_everyone()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        file = self._progress_file(checkpoint)
        if not file.exists():
            _logger.warning(
                f"{checkpoint} has no {file.name}: it was written by another trainer or by another "
                "number of processes, and what follows is not what would have followed there"
            )
            return
        device = self.accelerator.device
        if device.type == "cpu":  # of several processes "cpu:0", which torch cannot load to
            device = torch.device("cpu")
        with torch.serialization.safe_globals([TokenRecord]):
            progress = torch.load(file, map_location=device, weights_only=True)
        self._step = progress["step"]
        self._buffered_inputs = progress["rollouts"]
        self._metrics["train"].update(progress["metrics"])
        self._tr_loss = progress["loss"]
        self._globalstep_last_logged = progress["logged"]
        self.entropy_coef, self._last_world_entropy = progress["entropy"]
        if self.args.sync_ref_model:
            weights = torch.load(Path(checkpoint, _REFERENCE), map_location=device)
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(weights)

    def _progress_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"progress_{self.accelerator.process_index}.pt")


_REFERENCE = "reference.pt"
