"""Cold start: supervised fine-tuning on curated trajectories, with TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from toolwise.agent.processor import load_processor
from toolwise.agent.rendering import RenderedConversation, Renderer
from toolwise.data import Trajectory
from toolwise.data.parquet import read_trajectories
from toolwise.errors import InputError
from toolwise.progress import Log, Progress
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.tools.text_search import TEXT_SEARCH_SCHEMA
from toolwise.training.batching import blank, collate
from toolwise.training.launcher.fsdp import gather_head, shards
from toolwise.training.policy import adapter_config, load_policy
from toolwise.training.resuming import (
    per_device,
    train_and_publish,
    trainer_arguments,
    working_directory,
)
from toolwise.training.settings import SftSettings


def train_sft(
    model_dir: Path,
    trajectories: Path,
    out_dir: Path,
    settings: SftSettings,
    seed: int = 0,
    *,
    tools: Sequence[dict[str, Any]] = (PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA),
    log: Log | None = None,
    progress: Progress | None = None,
) -> None:
    """Fine-tune the checkpoint on trajectories and write the new one to `out_dir`, all or nothing.

    The loss counts what the assistant wrote, and nothing else. A killed run resumes from its last
    checkpoint when called again with the same arguments, and ends in the same model.

    Args:
        model_dir: checkpoint to start from.
        trajectories: Parquet file; a trajectory whose task's metadata says `tools: none` is
            rendered without the tool block.
        out_dir: gets the checkpoint, and the curve as `train_log.jsonl`.
        settings: see there.
        seed: of the order of the data.
        tools: JSON schemas in the prompt.
        log: gets each step's metrics.
        progress: gets each step.

    Raises:
        InputError: there is no trajectory, or one cannot be rendered.
    """
    renderer = Renderer(load_processor(model_dir))
    rendered = [
        _render(renderer, trajectory, tools) for trajectory in read_trajectories(trajectories)
    ]
    if not rendered:
        raise InputError(f"{trajectories} holds no trajectory to train on")
    work = working_directory(out_dir, settings, seed, [model_dir, trajectories])
    trainer = build_trainer(model_dir, rendered, renderer, work, settings, seed)
    keep = settings.keep_checkpoints
    train_and_publish(trainer, work, out_dir, keep=keep, log=log, progress=progress)


def build_trainer(
    model_dir: Path,
    rendered: Sequence[RenderedConversation],
    renderer: Renderer,
    work: Path,
    settings: SftSettings,
    seed: int,
) -> SFTTrainer:
    """The trainer of a checkpoint on these conversations.

    Args:
        model_dir: checkpoint to start from.
        rendered: what the assistant is to learn.
        renderer: preprocesses their images.
        work: gets the checkpoints.
        settings: how to train.
        seed: of the order of the data.
    """
    sharded = shards(settings)

    def batch(rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        conversations = [rendered[row["row"]] for row in rows]
        # The vision encoder is gathered from all processes, in step: by all of them or by none.
        if sharded and not any(conversation.images for conversation in conversations):
            conversations.append(blank(renderer))
        return collate(conversations, renderer)

    trainer = SFTTrainer(
        model=load_policy(model_dir, settings),
        args=SFTConfig(
            **trainer_arguments(work, seed, settings),
            max_steps=settings.steps,
            per_device_train_batch_size=per_device(settings.batch_size, settings.accumulate, "sft"),
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_steps,
            adam_beta2=0.98,
            weight_decay=0.01,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
        ),
        # Rendered once, before; the data set is only the order in which they come.
        train_dataset=Dataset.from_dict({"row": _order(rendered, settings, seed)}),
        data_collator=batch,
        processing_class=load_processor(model_dir),
        peft_config=adapter_config(settings.lora),
    )
    # Qwen3-VL's class says no, of the loss in its own forward pass. The trainer's loss is another,
    # and without the count it would average means of parts, whose numbers of tokens differ.
    trainer.model_accepts_loss_kwargs = True
    gather_head(trainer.model)
    return trainer


def _order(rendered: Sequence[RenderedConversation], settings: SftSettings, seed: int) -> list[int]:
    """Which row comes when: epoch after epoch shuffled, every batch sorted by length.

    The parts a batch is worked off in then hold rows of a length, with little padding.
    """
    shuffle = torch.Generator().manual_seed(seed)
    wanted = settings.steps * settings.batch_size
    rows: list[int] = []
    while len(rows) < wanted:
        rows += torch.randperm(len(rendered), generator=shuffle).tolist()
    batches = (rows[at : at + settings.batch_size] for at in range(0, wanted, settings.batch_size))
    return [row for batch in batches for row in sorted(batch, key=lambda r: len(rendered[r].ids))]


def _render(
    renderer: Renderer, trajectory: Trajectory, tools: Sequence[dict[str, Any]]
) -> RenderedConversation:
    offered = () if trajectory.task.metadata.get("tools") == "none" else tools
    try:
        return renderer.conversation(trajectory.messages, offered)
    except InputError as error:
        raise InputError(f"trajectory {trajectory.task.id}: {error}") from error
