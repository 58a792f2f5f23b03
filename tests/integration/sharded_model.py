"""What processes do that share a model's weights, in a test of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from recorded_rollouts import PROMPTS, G, base_model, load, on_records
from torch import nn
from torch.distributed.tensor import DTensor
from toy_training import trajectories

from toolwise.agent.processor import load_processor
from toolwise.agent.rendering import Renderer
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.errors import InputError
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.training.launcher.fsdp import fsdp_arguments
from toolwise.training.settings import SftSettings
from toolwise.training.sft import build_trainer


def untied(folder: Path) -> Path:
    """The checkpoint with a head of its own, as the larger Qwen3-VL models have one."""
    base, changed = base_model(folder), folder / "untied"
    model = load(base)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(2 * model.lm_head.weight.detach())
    model.save_pretrained(changed)
    load_processor(base).save_pretrained(changed)
    return changed


def loss_and_whole_gradients(base: Path, out: Path) -> None:
    """A step on the recorded rollouts, each process its part; writes loss and gradients."""
    trainer: Any = on_records(base, out.parent, w_tool=1.0)
    group = trainer.accelerator
    trainer._agent.suppressed_ids = trainer._agent.renderer.tokenizer("9")["input_ids"]
    trainer.current_gradient_accumulation_steps = 1
    if group.num_processes > 1:
        _shard(trainer.model)
        engine = TransformersEngine(trainer.model, trainer.processing_class)
        with pytest.raises(InputError, match="sharded over several processes"):
            engine.start([], [])
    rows = [{"prompt": index} for index in range(len(PROMPTS)) for _ in range(G)]
    part = len(rows) // group.num_processes
    batch = trainer._generate_and_score_completions(rows[group.process_index * part :][:part])
    _write(trainer, trainer._compute_loss(trainer.model, batch), out)


def cold_start_loss_and_whole_gradients(base: Path, out: Path, rows: Sequence[int]) -> None:
    """A step of the cold start on these of the toy's trajectories, each process its part."""
    renderer = Renderer(load_processor(base))
    toys = [trajectories()[row] for row in rows]
    rendered = [renderer.conversation(toy.messages, [PYTHON_SCHEMA]) for toy in toys]
    settings = SftSettings(steps=1, batch_size=len(rows))
    several = PartialState(cpu=True).num_processes > 1  # forms the group, as the launcher does
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolwise.training.sft.shards", lambda _: several)
        trainer: Any = build_trainer(base, rendered, renderer, out.parent, settings, 0)
    if several:
        _shard(trainer.model)
    batches = iter(trainer.get_train_dataloader())
    (batch,), count = trainer.get_batch_samples(batches, 1, trainer.accelerator.device)
    loss = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count)
    _write(trainer, loss, out)


def _write(trainer: Any, loss: torch.Tensor, out: Path) -> None:
    """The loss of all processes, and its gradients."""
    loss.backward()
    named = trainer.model.named_parameters()
    gradients = {name: _whole(p.grad) for name, p in named if p.grad is not None}
    group = trainer.accelerator
    found = {"loss": group.gather(loss.detach()).mean().item(), "gradients": gradients}
    if group.is_main_process:
        torch.save(found, out)


def _shard(model: Any) -> None:
    """As Accelerate does it on GPUs; without one it knows no FSDP."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=fsdp_arguments()["fsdp_config"][
            "transformer_layer_cls_to_wrap"
        ],
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    state: Any = SimpleNamespace(fsdp_plugin=plugin)
    fsdp2_prepare_model(SimpleNamespace(state=state, mixed_precision="no"), model)
    assert all(isinstance(weights, DTensor) for weights in model.parameters())


def _whole(gradient: Any) -> torch.Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
