"""The model a training step starts from, and the one it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import AutoModelForImageTextToText, Trainer

from toolwise.training.launcher.fsdp import load_sparingly, shards
from toolwise.training.settings import HdpoSettings, LoraSettings, SftSettings

ADAPTED = r".*\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
"""The linear layers of the language model, by name."""


def load_policy(model_dir: Path, settings: SftSettings | HdpoSettings) -> Any:
    """Load a checkpoint for training, in float32; in bfloat16 where only adapters are trained.

    Args:
        model_dir: a Hugging Face checkpoint.
        settings: whether the vision encoder stays as it is, and whether adapters are trained.
    """
    frozen = settings.lora is not None and torch.cuda.is_available()
    if shards(settings):
        load_sparingly()
    model: Any = AutoModelForImageTextToText.from_pretrained(
        model_dir, dtype=torch.bfloat16 if frozen else torch.float32
    )
    model.model.visual.requires_grad_(not settings.freeze_vision)
    return model


def adapter_config(lora: LoraSettings | None) -> Any:
    """The `peft_config` of TRL's trainers; None where the weights themselves are trained."""
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=ADAPTED,
        task_type="CAUSAL_LM",
    )


def save_policy(trainer: Trainer, folder: Path) -> None:
    """Write what was trained as a checkpoint of its own, adapters merged into the weights.

    Called on every process: a sharded model is gathered.
    """
    model: Any = trainer.model
    if not is_peft_model(model):
        trainer.save_model(str(folder))
    elif trainer.accelerator.is_main_process:
        model.merge_and_unload().save_pretrained(folder)
        processor: Any = trainer.processing_class
        processor.save_pretrained(folder)
