"""The arguments that shard a model are ones the libraries take, for layers the model has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from transformers import Trainer, TrainingArguments
from transformers.models.qwen3_vl import modeling_qwen3_vl

from toolwise.training.launcher.fsdp import fsdp_arguments, shards
from toolwise.training.settings import LoraSettings, SftSettings


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FullyShardedDataParallelPlugin:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_VERSION"):
        monkeypatch.setenv(name, "")  # what they set is taken back
        monkeypatch.delenv(name)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **fsdp_arguments())
    return FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)


def test_it_is_fsdp2_with_one_recomputation_and_a_whole_checkpoint(
    plugin: FullyShardedDataParallelPlugin,
) -> None:
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward
    assert plugin.activation_checkpointing
    assert plugin.cpu_ram_efficient_loading
    assert "FULL" in str(plugin.state_dict_type)
    assert fsdp_arguments()["gradient_checkpointing"] is False


def test_the_layers_it_gathers_are_the_models(plugin: FullyShardedDataParallelPlugin) -> None:
    wrapped = plugin.transformer_cls_names_to_wrap
    assert wrapped
    for name in wrapped:
        assert issubclass(getattr(modeling_qwen3_vl, name), torch.nn.Module)


def test_gradients_are_averaged_after_every_part_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the whole model, which a GPU would hold until the last part, have no room."""

    class Square(torch.nn.Linear):
        def forward(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(row).square().mean()}

    def kept(trainer: Trainer) -> list[int]:
        parts: list[int] = []

        @contextmanager
        def no_sync(model: torch.nn.Module) -> Iterator[None]:
            parts.append(trainer.state.global_step)
            yield

        monkeypatch.setattr(trainer.accelerator, "no_sync", no_sync)
        trainer.train()
        return parts

    def trainer(**more: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            max_steps=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=3,
            save_strategy="no",
            report_to="none",
            **more,
        )
        rows: Any = [{"row": torch.ones(1)}] * 6
        return Trainer(Square(1, 1), arguments, train_dataset=rows)

    assert kept(trainer()) == [0, 0, 1, 1]
    assert kept(trainer(accelerator_config=fsdp_arguments()["accelerator_config"])) == []


@pytest.mark.parametrize(
    ("gpus", "processes", "lora", "sharded"),
    [
        (True, 8, None, True),
        (True, 1, None, False),
        (True, 8, LoraSettings(), False),
        (False, 8, None, False),
    ],
)
def test_only_whole_weights_over_several_gpus_are_sharded(
    monkeypatch: pytest.MonkeyPatch,
    gpus: bool,
    processes: int,
    lora: LoraSettings | None,
    sharded: bool,
) -> None:
    class Group:
        num_processes = processes

    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus)
    monkeypatch.setattr("toolwise.training.launcher.fsdp.PartialState", Group)
    assert shards(SftSettings(lora=lora)) is sharded
