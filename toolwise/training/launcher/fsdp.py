"""Several GPUs, one model: arguments that make TRL's trainers shard it with FSDP2.

Without adapters, weights, gradients and Adam's moments are spread over all processes, and a layer
is gathered where it is worked on. With adapters every process keeps the frozen weights whole, which
Accelerate's data parallelism does by itself.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from torch.distributed.fsdp import FSDPModule

from toolwise.training.settings import HdpoSettings, SftSettings


def shards(settings: SftSettings | HdpoSettings) -> bool:
    """Whether the processes of this group spread one model over their GPUs."""
    return torch.cuda.is_available() and settings.lora is None and PartialState().num_processes > 1


def load_sparingly() -> None:
    """Have a checkpoint read by the first process of a node only; FSDP hands it to the others.

    Otherwise each of them would hold the whole model in the node's memory for a while.
    """
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"


def fsdp_arguments() -> dict[str, Any]:
    """Arguments of `TrainingArguments`.

    FSDP's own recomputation stands in for `gradient_checkpointing`, which would gather each layer
    once more. What is saved is one whole checkpoint, as without FSDP. Gradients are averaged after
    every part of a batch: summed up until the last one, every GPU would hold the whole model's.
    """
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "activation_checkpointing": True,
            "cpu_ram_efficient_loading": True,
            "state_dict_type": "FULL_STATE_DICT",
            "transformer_layer_cls_to_wrap": ["Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"],
        },
        "gradient_checkpointing": False,
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def gather_head(model: Any) -> None:
    """Have FSDP2 gather the head of a sharded model before each use.

    TRL's fused head reads the weights without calling their module, so that FSDP would neither
    gather them nor average their gradients over the processes.
    """
    model = model.get_base_model() if is_peft_model(model) else model
    head = model.get_output_embeddings()

    def unshard(*_: Any) -> None:
        if isinstance(head, FSDPModule):
            head.unshard()

    model.base_model.register_forward_hook(unshard)
