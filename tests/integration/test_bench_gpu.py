"""The part of the benchmark for a GPU, on a model small enough for any machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench import gpu
from toolwise.training.launcher.shape import shape_of


def test_a_few_steps_give_speed_and_shares_of_a_step() -> None:
    figures = gpu.measure(
        gpu.Run(shape="small", steps=2, prompts=2, group=2, tokens=8, accumulate=2)
    )
    assert figures["steps"] == 1  # the first warms up
    assert figures["rollouts_per_step"] == 4
    shares = [figures[f"{part}_share"] for part in ("rollout", "reward", "update")]
    assert sum(shares) == pytest.approx(1)
    assert all(share > 0 for share in shares)
    # 448 / 32 squared image tokens, the question, and a turn that random weights do not end
    assert figures["longest_conversation_tokens"] > 14 * 14 + 8
    written = figures["rollout_tokens_per_second"] * figures["rollout_seconds"]
    assert written == pytest.approx(4 * 8)


def test_its_model_has_random_weights_in_bf16_and_the_shape_its_config_says(tmp_path: Path) -> None:
    shape = gpu.write_model("small", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert sum(weight.numel() for weight in weights.values()) == shape.parameters
    assert shape_of(tmp_path) == shape


def test_the_estimate_it_is_set_beside_is_that_of_the_update_or_of_the_cache(
    tmp_path: Path,
) -> None:
    shape = gpu.write_model("small", tmp_path)
    few, many = gpu.Run(prompts=1, group=8, accumulate=1), gpu.Run(prompts=4096, accumulate=32768)
    update = gpu.estimated(shape, few.settings(), 1000)
    cache = gpu.estimated(shape, many.settings(), 1000)
    # 2 (keys, values) × 2 layers × 2 heads × 16 × 2 bytes, for 32,768 rollouts of 1,000 tokens
    assert cache > 2 * 2 * 2 * 16 * 2 * 32_768 * 1000 > update


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would be measured here")
def test_without_a_gpu_it_says_that_it_was_not_run() -> None:
    with pytest.raises(SystemExit, match="not run, for torch finds no CUDA GPU"):
        gpu.main([])
