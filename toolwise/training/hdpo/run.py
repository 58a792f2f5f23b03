"""The HDPO step: from a cold-started checkpoint and curated prompts to a frugal one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from toolwise.agent import Limits, Rollout, is_well_formed
from toolwise.agent.processor import load_processor
from toolwise.data import Task, grade
from toolwise.data.parquet import read_tasks
from toolwise.errors import InputError
from toolwise.progress import Log, Progress
from toolwise.tools import Tool, open_tools
from toolwise.training.hdpo.agent import InProcessAgent
from toolwise.training.hdpo.rewards import accuracy_rewards
from toolwise.training.hdpo.rollout_engine import rollout_engine, vllm_arguments
from toolwise.training.hdpo.trainer import HDPOConfig, HDPOTrainer
from toolwise.training.policy import adapter_config, load_policy
from toolwise.training.resuming import (
    per_device,
    train_and_publish,
    trainer_arguments,
    working_directory,
)
from toolwise.training.settings import HdpoSettings


def train_hdpo(
    model_dir: Path,
    tasks: Path,
    corpus: Path | None,
    out_dir: Path,
    settings: HdpoSettings,
    seed: int = 0,
    *,
    log: Log | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the checkpoint with HDPO and write the new one to `out_dir`, all or nothing.

    A killed run resumes from its last checkpoint when called again with the same arguments, and
    ends in the same model.

    Args:
        model_dir: checkpoint to start from.
        tasks: Parquet file of prompts.
        corpus: JSONL file for `text_search`; without one that tool is not offered.
        out_dir: gets the checkpoint, and the curve as `train_log.jsonl`.
        settings: see there.
        seed: of the order of the prompts and of the rollouts.
        log: gets each step's metrics.
        progress: gets each step.

    Raises:
        InputError: there are fewer prompts than a step takes.
        BackendError: a tool's backend failed; the run can be resumed.
    """
    prompts = read_tasks(tasks)
    if len(prompts) < settings.prompts_per_step:
        raise InputError(
            f"{tasks} holds {len(prompts)} prompts, and a step takes {settings.prompts_per_step}: "
            "lower hdpo.prompts_per_step or curate more"
        )
    inputs = [model_dir, tasks, *([corpus] if corpus else [])]
    work = working_directory(out_dir, settings, seed, inputs)
    tools = open_tools(corpus, settings.isolation, search=settings.search)
    try:
        trainer = build_trainer(model_dir, prompts, tools, work, settings, seed)
        keep = settings.keep_checkpoints
        train_and_publish(trainer, work, out_dir, keep=keep, log=log, progress=progress)
    finally:
        asyncio.run(_close(tools))


def task_accuracy(
    rollout: Sequence[Rollout], log_metric: Callable[[str, float], None], **_: Any
) -> list[float]:
    """The accuracy reward, as TRL's reward function: the task's own grader, and the format."""
    answer = torch.tensor([grade(r.task, r.answer) for r in rollout])
    form = torch.tensor([is_well_formed([turn.text for turn in r.turns]) for r in rollout])
    log_metric("format", form.float().mean().item())
    return accuracy_rewards(answer, form).tolist()


def build_trainer(
    model_dir: Path,
    prompts: Sequence[Task],
    tools: Sequence[Tool],
    work: Path,
    settings: HdpoSettings,
    seed: int,
    *,
    reward: Callable[..., list[float]] = task_accuracy,
) -> HDPOTrainer:
    """The trainer of a checkpoint on these prompts, with rollouts of the agent loop.

    Args:
        model_dir: checkpoint to start from.
        prompts: what is asked.
        tools: what the prompts offer.
        work: gets the checkpoints.
        settings: how to train.
        seed: of the order of the prompts and of the rollouts.
        reward: the accuracy reward, a TRL reward function that is given `rollout`.
    """
    processor = load_processor(model_dir)
    model = load_policy(model_dir, settings)
    rollouts = settings.prompts_per_step * settings.num_generations
    return HDPOTrainer(
        model=model,
        reward_funcs=reward,
        args=HDPOConfig(
            **trainer_arguments(work, seed, settings),
            **vllm_arguments(settings.hardware),
            max_steps=settings.steps,
            per_device_train_batch_size=per_device(rollouts, settings.accumulate, "hdpo"),
            gradient_accumulation_steps=settings.accumulate,
            num_generations=settings.num_generations,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=settings.warmup_steps,
            adam_beta2=0.99,
            beta=0.0,
            loss_type="grpo" if settings.aggregation == "rollout" else "dapo",
            epsilon=settings.clip_low,
            epsilon_high=settings.clip_high,
            delta=settings.dual_clip,
            temperature=settings.temperature,
            max_completion_length=settings.max_tokens,
            variant=settings.variant,
            w_acc=settings.w_acc,
            w_tool=settings.w_tool,
            alpha=settings.alpha,
            difficulty_aware=settings.difficulty_aware,
            tool_free=settings.tool_free,
            tool_free_correction=settings.tool_free_correction,
            efficiency_normalize=settings.efficiency_normalize,
        ),
        processing_class=processor,
        peft_config=adapter_config(settings.lora),
        agent=lambda trainer: InProcessAgent(
            rollout_engine(trainer, model, processor, settings.hardware),
            tools,
            Limits(max_turns=settings.max_turns),
        ),
        tasks=prompts,
    )


async def _close(tools: Sequence[Tool]) -> None:
    await asyncio.gather(*(tool.aclose() for tool in tools))
