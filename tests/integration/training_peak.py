"""Measure the peak memory of one training step of the tiny model: `training_peak.py ROWS TOKENS`.

Prints a JSON pair: bytes measured over those of a model at rest, and bytes estimated for the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from trl.trainer.utils import add_fused_lm_head

from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.training.launcher.memory import IMAGE_SHARE, Load
from toolwise.training.launcher.shape import ModelShape

IMAGE_TOKENS, PATCHES, PATCH_VALUES = 9, 36, 3 * 8 * 8


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def main(rows: int, tokens: int) -> None:
    torch.set_num_threads(1)
    processor = build_processor([PYTHON_SCHEMA])
    model = build_model(processor.tokenizer).train()
    add_fused_lm_head(model)
    optimiser = torch.optim.AdamW(model.parameters())

    def step(count: int) -> None:
        image = model.config.image_token_id
        images = int(tokens * IMAGE_SHARE) // IMAGE_TOKENS
        row = [*([image] * IMAGE_TOKENS), 5] * images
        row += [5] * (tokens - len(row))
        ids = torch.tensor([row] * count)
        loss = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == image).long(),
            pixel_values=torch.randn(count * images * PATCHES, PATCH_VALUES),
            image_grid_thw=torch.tensor([[1, 6, 6]] * (count * images)),
            labels=ids.where(ids != image, -100),
            fused_lm_head=True,
        ).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    step(1)  # what a first step sets up stays: Adam's moments, threads, kernels
    at_rest = resident("VmRSS")
    step(rows)
    shape = ModelShape.model_validate(model.config.to_dict())
    load = Load(
        shape=shape,
        trainable=shape.parameters,
        adapters=0,
        shards=1,
        weight_bytes=4,
        value_bytes=4,
        rows=rows,
        tokens=tokens,
        recompute=False,
        frozen_vision=False,
    )
    resting = sum(part.size for part in load.resting)
    estimated = sum(part.size for part in load.update) - resting
    print(json.dumps([resident("VmHWM") - at_rest, estimated]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
