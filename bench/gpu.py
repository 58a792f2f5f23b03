"""HDPO steps of a Qwen3-VL-shaped model with random weights, in bf16 on one GPU.

`python -m bench.gpu` measures the shape of Qwen3-VL-2B with adapters, as the profile `qwen3-vl-2b`
trains it, on prompts of signboard; `--all-weights` trains the weights themselves. Rollouts are the
agent loop's, sampled in process without vLLM. Random weights neither end a turn nor call a tool, so
every rollout is one turn of `--tokens` tokens, and rewards are drawn by chance, so that every
rollout has a gradient. The peak of memory is set beside what `toolwise estimate` would say of it.

`--shape small` is a smoke test for any machine: it prints the table and writes no figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench.recording import record, show
from toolwise.agent import Rollout
from toolwise.agent.processor import ImageProcessor
from toolwise.profile import load_profile
from toolwise.synthetic.environment import PHRASES, SignboardSettings, make_environment
from toolwise.synthetic.model import VISION_TOKENS, build_tokenizer
from toolwise.tools import open_tools, tool_schemas
from toolwise.training.hardware import HardwareSettings
from toolwise.training.hdpo.agent import token_record
from toolwise.training.hdpo.run import build_trainer
from toolwise.training.launcher.memory import Load, rows_at_once, total
from toolwise.training.launcher.shape import ModelShape
from toolwise.training.settings import HdpoSettings

SHAPES = ("Qwen3-VL-2B-Instruct", "Qwen3-VL-8B-Instruct", "small")
SIDE = 448
"""Pixels of an image's side; a token of the 2B and 8B models stands for 32 × 32 of them."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained, and how much of it.

    Args:
        shape: one of `SHAPES`.
        steps: optimizer steps; the first warms up and is left out where there are more.
        prompts: of a step.
        group: rollouts of a prompt.
        tokens: of a rollout's turn.
        accumulate: parts a step is worked off in.
        all_weights: train the weights instead of adapters.
    """

    shape: str = SHAPES[0]
    steps: int = 4
    prompts: int = 4
    group: int = 8
    tokens: int = 512
    accumulate: int = 16
    all_weights: bool = False

    def settings(self) -> HdpoSettings:
        """Those of the profile `qwen3-vl-2b`, at this size."""
        profile = load_profile("qwen3-vl-2b").hdpo
        changes: dict[str, Any] = {
            "steps": self.steps,
            "prompts_per_step": self.prompts,
            "num_generations": self.group,
            "max_tokens": self.tokens,
            "accumulate": self.accumulate,
            "search": None,
            "hardware": None,
        }
        if self.all_weights:
            changes["lora"] = None
        return profile.model_copy(update=changes)


def measure(run: Run = Run()) -> dict[str, float]:
    """Tokens a second, shares of rollout, reward and update, and the peak of memory on a GPU.

    Ends the program where torch finds no GPU and `run.shape` is not the small one.
    """
    cuda = torch.cuda.is_available()
    if not cuda and run.shape != "small":
        sys.exit(
            "bench gpu: not run, for torch finds no CUDA GPU on this machine. A smoke test on the "
            "CPU: python -m bench.gpu --shape small"
        )
    settings, chance, longest = run.settings(), random.Random(0), [0]

    def reward(rollout: Sequence[Rollout], **_: Any) -> list[float]:
        records = [token_record(one) for one in rollout]
        longest.append(max(len(r.prompt_ids) + len(r.completion_ids) for r in records))
        return [float(chance.random() < 0.5) for _ in rollout]

    prompts = make_environment(
        0, SignboardSettings(trajectories=1, rl_tasks=3 * run.prompts, benchmark_items=3)
    ).rl_tasks
    tools = open_tools(None, settings.isolation)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shape = write_model(run.shape, model)
        try:
            trainer = build_trainer(
                model, prompts, tools, Path(folder) / "work", settings, 0, reward=reward
            )
            trainer.args.save_strategy = "no"  # type: ignore[assignment]
            trainer.remove_callback(PrinterCallback)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
        finally:
            asyncio.run(_close(tools))
    figures = {
        "parameters_billions": shape.parameters / 1e9,
        "rollouts_per_step": float(run.prompts * run.group),
        "longest_conversation_tokens": float(max(longest)),
        **_speed(trainer.state.log_history),
    }
    if cuda:
        peak, expected = torch.cuda.max_memory_allocated(), estimated(shape, settings, max(longest))
        figures["peak_memory_gib"] = peak / 2**30
        figures["estimated_memory_gib"] = expected / 2**30
        figures["estimated_over_peak"] = expected / peak
    return figures


def write_model(name: str, folder: Path) -> ModelShape:
    """Write a checkpoint with random weights and a small tokenizer; returns its shape.

    Tokens that only the published tokenizer has stand for no text here.
    """
    file = resources.files("toolwise.training.launcher") / "configs" / f"{name}.json"
    config = _small() if name == "small" else json.loads(file.read_text(encoding="utf-8"))
    tokenizer = build_tokenizer(tool_schemas(None), PHRASES)
    config |= {key: tokenizer.convert_tokens_to_ids(text) for key, text in VISION_TOKENS.items()}
    config["text_config"] |= {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = config["vision_config"]
    images = Qwen2VLImageProcessorPil(
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        merge_size=vision["spatial_merge_size"],
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).bfloat16()
    model.save_pretrained(folder)
    ImageProcessor(images, tokenizer, chat_template=tokenizer.chat_template).save_pretrained(folder)
    return ModelShape.model_validate(model.config.to_dict())


def estimated(shape: ModelShape, settings: HdpoSettings, tokens: int) -> float:
    """Bytes at the peak of a step, as the estimate has them for conversations of this length."""
    hardware = HardwareSettings(gpu="h100-80gb", context_tokens=tokens)
    on_gpu = settings.model_copy(update={"hardware": hardware})
    load = Load.of(shape, on_gpu, rows_at_once(on_gpu), tokens)
    rollouts = settings.prompts_per_step * settings.num_generations
    return max(total(load.update), total([*load.resting, load.cache(rollouts)]))


def _speed(history: list[dict[str, float]]) -> dict[str, float]:
    steps = [entry for entry in history if "seconds/update" in entry]
    counted = steps[1:] or steps
    mean = {
        name: statistics.mean(entry[name] for entry in counted)
        for name in (
            *("seconds/rollout", "seconds/reward", "seconds/update"),
            "rollout/tokens_per_second",
        )
    }
    written = mean["rollout/tokens_per_second"] * mean["seconds/rollout"]
    parts = {name: mean[f"seconds/{name}"] for name in ("rollout", "reward", "update")}
    whole = sum(parts.values())
    return {
        "steps": float(len(counted)),
        "rollout_tokens_per_second": mean["rollout/tokens_per_second"],
        "step_tokens_per_second": written / whole,
        **{f"{name}_seconds": seconds for name, seconds in parts.items()},
        **{f"{name}_share": seconds / whole for name, seconds in parts.items()},
    }


def _small() -> dict[str, Any]:
    """A config of the same parts that a CPU trains in seconds."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    return {
        "tie_word_embeddings": True,
        "text_config": {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {**rope, "mrope_interleaved": True},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0],
        },
    }


async def _close(tools: Sequence[Any]) -> None:
    await asyncio.gather(*(tool.aclose() for tool in tools))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for; write the figures where a GPU gave them."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default=Run().shape)
    for name in ("steps", "prompts", "group", "tokens", "accumulate"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Run(), name))
    parser.add_argument("--all-weights", action="store_true")
    started = time.perf_counter()
    figures = measure(Run(**vars(parser.parse_args(arguments))))
    show("gpu", figures, Console())
    if torch.cuda.is_available():
        seconds = time.perf_counter() - started
        record("gpu", figures, seconds, gpu=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
