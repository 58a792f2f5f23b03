"""What a step of `HDPOTrainer` costs beside one of TRL's `GRPOTrainer`, on the same rollouts.

Signboard's own trajectories stand for the rollouts, so that a step is rewards, advantages, forward
and backward pass and optimiser, without generation. Steps of the trainers alternate in one process
and are timed on the processor's clock, so that other work on the machine does not count. `hdpo`
takes TRL's forward pass, as `grpo` does; `hdpo_agent` takes the one for the agent loop's rollouts.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from toolwise.agent import Rollout, Sampling, TokenRecord
from toolwise.agent.rendering import Renderer
from toolwise.data import Task, Trajectory, decode_image
from toolwise.synthetic.environment import PHRASES, SignboardSettings, make_environment
from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools import tool_schemas
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer

PROMPTS = 6
GROUP = 8
REPEATS = 15


def measure() -> dict[str, float]:
    """Median seconds of a step, and medians of the ratios to the `grpo` step beside it."""
    schemas = tool_schemas(None)
    processor = build_processor(schemas, PHRASES)
    settings = SignboardSettings(
        trajectories=PROMPTS * GROUP, rl_tasks=3, benchmark_items=3, corpus_distractors=1
    )
    renderer = Renderer(processor)
    recorded = [
        _rollout(renderer, trajectory, schemas)
        for trajectory in make_environment(0, settings).trajectories[: PROMPTS * GROUP]
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainers: dict[str, Any] = {
            "grpo": _trainer(_RecordedGRPO, GRPOConfig, processor, folder),
            "hdpo": _trainer(_RecordedHDPO, HDPOConfig, processor, folder),
            "hdpo_agent": HDPOTrainer(
                **_arguments(HDPOConfig, processor, folder),
                agent=_Recorded(renderer, recorded),
                tasks=[rollout.task for rollout in recorded],
            ),
        }
        for name in ("grpo", "hdpo"):
            trainers[name].recorded = recorded
        for trainer in trainers.values():
            trainer.current_gradient_accumulation_steps = 1
            trainer.create_optimizer()
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for repeat in range(REPEATS + 1):
            names = list(trainers)
            for name in names[repeat % 3 :] + names[: repeat % 3]:
                taken = _step(trainers[name])
                if repeat:  # the first of each warms up
                    seconds[name].append(taken)
    figures = {f"{name}_seconds": statistics.median(taken) for name, taken in seconds.items()}
    for name in ("hdpo", "hdpo_agent"):
        pairs = zip(seconds[name], seconds["grpo"], strict=True)
        figures[f"{name}_ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
    return {"torch_threads": torch.get_num_threads(), "rollouts": len(recorded), **figures}


def _step(trainer: Any) -> float:
    rows = [{"prompt": i} for i in range(PROMPTS * GROUP)]
    started = time.process_time()
    trainer.training_step(trainer.model, rows, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.process_time() - started


def _rollout(renderer: Renderer, trajectory: Trajectory, schemas: Sequence[Any]) -> Rollout:
    rendered = renderer.conversation(trajectory.messages, schemas)
    start = rendered.mask.index(1)
    mask = tuple(rendered.mask[start:])
    record = TokenRecord(
        tuple(rendered.ids[:start]),
        tuple(rendered.ids[start:]),
        mask,
        tuple(-0.1 * wrote for wrote in mask),
        rendered.images,
        len(trajectory.task.images),
    )
    return Rollout(trajectory.task, list(trajectory.messages), tokens=record)


def _right(rollout: Sequence[Rollout], **_: Any) -> list[float]:
    """Five of six are right, whichever they are."""
    return [float(i % 6 != 5) for i in range(len(rollout))]


class _Recorded:
    """Hands out the recorded rollouts in order."""

    suppressed_ids: Sequence[int] = ()
    stats = None

    def __init__(self, renderer: Renderer, rollouts: Sequence[Rollout]) -> None:
        self.renderer = renderer
        self._rollouts = rollouts

    def answer(
        self, tasks: Sequence[Task], sampling: Sampling, *, tool_free: bool = False
    ) -> Sequence[Rollout]:
        return self._rollouts

    def prompt_ids(self, task: Task, *, tool_free: bool) -> tuple[int, ...]:
        raise NotImplementedError


class _RecordedGRPO(GRPOTrainer):
    """TRL's trainer, its own loop's rollouts replaced by the recorded ones."""

    recorded: Sequence[Rollout]

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        records = [rollout.tokens for rollout in self.recorded if rollout.tokens]
        images = [[decode_image(image) for image in r.images] or None for r in records]
        shown = [(i or [])[r.prompt_images :] for i, r in zip(images, records, strict=True)]
        return (
            [list(r.prompt_ids) for r in records],
            [list(r.completion_ids) for r in records],
            [list(r.mask) for r in records],
            [[m for m in rollout.messages if m["role"] != "user"] for rollout in self.recorded],
            None,
            {"rollout": list(self.recorded)},
            images,
            shown,
        )


class _RecordedHDPO(HDPOTrainer):
    _generate = _RecordedGRPO._generate  # type: ignore[assignment]
    recorded: Sequence[Rollout]


def _arguments(config: type[GRPOConfig], processor: Any, folder: str) -> dict[str, Any]:
    return {
        "model": build_model(processor.tokenizer),
        "reward_funcs": _right,
        "args": config(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        "processing_class": processor,
    }


def _trainer(kind: type[Any], config: type[GRPOConfig], processor: Any, folder: str) -> Any:
    prompts = Dataset.from_dict({"prompt": list(itertools.repeat(0, PROMPTS * GROUP))})
    return kind(**_arguments(config, processor, folder), train_dataset=prompts, tools=[_look])


def _look(where: str) -> str:
    """Look closer.

    Args:
        where: at what.

    Returns:
        What is there.
    """
    return where
