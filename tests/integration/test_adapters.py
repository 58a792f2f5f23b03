"""Training adapters: what is left is a whole checkpoint, changed only where they were."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from toy_training import trajectories, write_base

from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data.parquet import write_trajectories
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.training.policy import ADAPTED
from toolwise.training.settings import LoraSettings, SftSettings
from toolwise.training.sft import train_sft


def test_adapters_are_merged_into_the_linear_layers_of_the_language_model(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base, data = write_base(tmp_path / "base"), tmp_path / "trajectories.parquet"
    write_trajectories(data, trajectories())
    settings = SftSettings(
        steps=2, batch_size=2, learning_rate=1e-2, warmup_steps=0, lora=LoraSettings(rank=4)
    )
    train_sft(base, data, tmp_path / "sft", settings, tools=[PYTHON_SCHEMA])
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "sft"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {name for name in before if re.fullmatch(ADAPTED + r"\.weight", name)}
    assert len(adapted) == 7 * 3
    assert changed == adapted
    TransformersEngine.load(tmp_path / "sft")
