"""Rollouts written by hand, the same whoever asks: for tests of what is learnt from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from toy_training import TASKS, answer, call, question, result, write_base
from transformers import AutoModelForImageTextToText
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from toolwise.agent import Rollout, Sampling, TokenRecord, user_message
from toolwise.agent.processor import load_processor
from toolwise.agent.rendering import Renderer
from toolwise.data import Message, Task, decode_image
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer
from toolwise.training.hdpo.tool_free import is_tool_free

G = 4
RED, BLUE, SUM, _ = TASKS
PRODUCT = replace(SUM, id="product", question="product?", answer=("12",))
PROMPTS = (RED, BLUE, SUM, PRODUCT)


def conversations(task: Task) -> list[list[Message]]:
    """G ways to answer: by oneself; wrongly so; with one call; with two (the product: wrongly)."""
    right = task.answer[0]
    if task.images:
        once = [call("show(image)"), result({"type": "image", "image": task.images[0]})]
    else:
        once = [call(f"print({right})"), result({"type": "text", "text": right})]
    last = "5" if task is PRODUCT else right
    return [
        [answer(right)],
        [answer("no idea")],
        [*once, answer(right)],
        [*once, *once, answer(last)],
    ]


def record(renderer: Renderer, task: Task, messages: list[Message]) -> Rollout:
    rendered = renderer.conversation([question(task), *messages], [PYTHON_SCHEMA])
    start = rendered.mask.index(1)
    mask = tuple(rendered.mask[start:])
    text = messages[-1]["content"]
    return Rollout(
        task,
        [question(task), *messages],
        answer=text.removeprefix("<answer>").removesuffix("</answer>"),
        tokens=TokenRecord(
            tuple(rendered.ids[:start]),
            tuple(rendered.ids[start:]),
            mask,
            tuple(-1.0 * wrote for wrote in mask),
            rendered.images,
            len(task.images),
        ),
    )


class RecordedAgent:
    """Hands out a task's rollouts in turn, by their place in the whole batch.

    Args:
        processor: renders them.
        rows: of each process, where some of them are tool-free; then those get the direct answer.
        tool_free: how many of a group are.
    """

    suppressed_ids: Sequence[int] = ()
    stats = None

    def __init__(self, processor: Any, rows: int = 0, tool_free: int = 0) -> None:
        self.renderer = Renderer(processor)
        self._rows, self._tool_free = rows, tool_free
        self.rollouts = {
            task.id: [record(self.renderer, task, said) for said in conversations(task)]
            for task in PROMPTS
        }

    def answer(
        self, tasks: Sequence[Task], sampling: Sampling, *, tool_free: bool = False
    ) -> list[Rollout]:
        rows = self._rows or len(tasks)
        first = PartialState().process_index * rows
        places = [
            place % G
            for place in range(first, first + rows)
            if is_tool_free(place, G, self._tool_free) == tool_free
        ]
        return [
            self.rollouts[task.id][0 if tool_free else place]
            for task, place in zip(tasks, places, strict=True)
        ]

    def prompt_ids(self, task: Task, *, tool_free: bool) -> tuple[int, ...]:
        offered = [] if tool_free else [PYTHON_SCHEMA]
        return tuple(self.renderer.prompt([user_message(task)], offered).ids)


def right(rollout: Sequence[Rollout], **_: Any) -> list[float | None]:
    return [float(r.answer in r.task.answer) for r in rollout]


def two_right(rollout: Sequence[Rollout], **_: Any) -> list[float | None]:
    """Of all rollouts only the two of the first prompt that answer rightly with a call or none."""
    return [
        float(r.task is RED and r.answer in r.task.answer and len(r.messages) <= 4) for r in rollout
    ]


def arguments(folder: Path, prompts: int = len(PROMPTS), **changes: Any) -> dict[str, Any]:
    """Settings of one step over all rollouts of so many prompts, on a CPU, with nothing written."""
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": prompts * G,
        "num_generations": G,
        "max_completion_length": 64,
        "temperature": 1.0,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        **changes,
    }


def base_model(folder: Path) -> Path:
    """An untrained checkpoint, the same every time; written once."""
    torch.set_num_threads(1)
    base = folder / "base"
    return base if base.exists() else write_base(base)


def load(base: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)


def on_records(
    base: Path, folder: Path, reward: Any = right, peft_config: Any = None, **changes: Any
) -> HDPOTrainer:
    """An HDPO trainer on the recorded rollouts."""
    processor = load_processor(base)
    rows = 0
    if "tool_free" in changes:
        rows = changes["per_device_train_batch_size"] * changes["gradient_accumulation_steps"]
    return HDPOTrainer(
        model=load(base),
        reward_funcs=reward,
        args=HDPOConfig(**arguments(folder, **changes)),
        processing_class=processor,
        peft_config=peft_config,
        agent=RecordedAgent(processor, rows, changes.get("tool_free", 0)),
        tasks=PROMPTS,
    )


class GRPOOnRecords(GRPOTrainer):
    """TRL's trainer on the recorded rollouts, as if its own loop had made them."""

    recorded: RecordedAgent

    @classmethod
    def build(cls, base: Path, folder: Path, **changes: Any) -> GRPOOnRecords:
        from datasets import Dataset

        processor = load_processor(base)
        trainer = cls(
            model=load(base),
            reward_funcs=right,
            args=GRPOConfig(**arguments(folder, **changes)),
            processing_class=processor,
            train_dataset=Dataset.from_dict({"prompt": list(range(len(PROMPTS)))}),
            tools=[show],
        )
        trainer.recorded = RecordedAgent(processor)
        return trainer

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        rollouts = self.recorded.answer([PROMPTS[p] for p in prompts], Sampling())
        records = [rollout.tokens for rollout in rollouts if rollout.tokens]
        shown = [[decode_image(image) for image in r.images] for r in records]
        return (
            [list(r.prompt_ids) for r in records],
            [list(r.completion_ids) for r in records],
            [list(r.mask) for r in records],
            [r.messages[1:] for r in rollouts],
            None,
            {"rollout": rollouts},
            shown,
            [images[r.prompt_images :] for images, r in zip(shown, records, strict=True)],
        )


def show(name: str) -> str:
    """Show an image.

    Args:
        name: of the image.

    Returns:
        The image.
    """
    return name


def scored(trainer: Any) -> dict[str, Any]:
    """The batch of one step over all prompts."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": index} for index in range(len(PROMPTS)) for _ in range(G)]
    return trainer._generate_and_score_completions(rows)


def loss_and_gradients(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    found = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return loss.item(), found


def assert_same_gradients(one: dict[str, Any], other: dict[str, Any], atol: float = 2e-6) -> None:
    """A parameter without a gradient has one of zero."""
    assert any(gradient.abs().max() > 100 * atol for gradient in one.values())
    for name in one.keys() | other.keys():
        first, second = one.get(name, torch.zeros(())), other.get(name, torch.zeros(()))
        torch.testing.assert_close(
            first + 0 * second,
            second + 0 * first,
            atol=atol,
            rtol=1e-3,
            msg=lambda m, n=name: n + m,
        )
