"""Training in processes of its own, which can be killed, or be several that share the work.

They are forked from a server that has imported everything once; nothing else is shared.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from recorded_rollouts import arguments, load, on_records
from transformers import TrainerCallback

from toolwise.agent.processor import load_processor
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer
from toolwise.training.hdpo.run import train_hdpo
from toolwise.training.resuming import last_checkpoint
from toolwise.training.settings import HdpoSettings

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["training_processes", "accelerate", "peft"])


def run(job: Callable[..., None], *inputs: Any, processes: int = 1) -> list[int]:
    """`job(*inputs)` in so many processes, joined by gloo; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        _context.Process(target=_enter, args=(rank, processes, port, job, inputs))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=600)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return [-1 if code is None else code for code in codes]


def _enter(rank: int, processes: int, port: int, job: Callable[..., None], inputs: Any) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
    job(*inputs)


class _Gradients(TrainerCallback):
    """Keeps each step's gradients as the optimiser gets them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        model = getattr(model, "module", model)
        named = model.named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def train_on_records(base: Path, out: Path, runs: list[dict[str, Any]]) -> None:
    """Trains on the recorded rollouts, once per settings; writes curves and gradients."""
    found: list[Any] = []
    for changes in runs:
        trainer = on_records(base, out.parent, **changes)
        gradients = _Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        found.append((trainer.state.log_history, gradients.steps))
    if PartialState().is_main_process:
        torch.save(found, out)


def kill_after(trainer: Any, event: str, step: int) -> None:
    """Let the process die, as if the power went, when a method of the trainer has run.

    Args:
        trainer: whose method.
        event: its name.
        step: the global step at which.
    """
    original = getattr(trainer, event)

    def lethal(*inputs: Any, **more: Any) -> Any:
        found = original(*inputs, **more)
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(trainer, event, lethal)


def train_on_trl(base: Path, folder: Path, changes: dict[str, Any], death: Any) -> None:
    """Trains on TRL's own generation from the last checkpoint; writes the curve at the end."""
    texts = ("sum?", "colour?", "how?", "why?", "who?")

    def length(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [float(sum(ids) % 7) for ids in completion_ids]

    settings = {
        "max_completion_length": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        **changes,
    }
    trainer = HDPOTrainer(
        model=load(base),
        reward_funcs=length,
        args=HDPOConfig(**arguments(folder, prompts=2, **settings)),
        processing_class=load_processor(base),
        train_dataset=Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": text}] for text in texts]}
        ),
    )
    if death:
        kill_after(trainer, *death)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    torch.save(trainer.state.log_history, folder / "curve.pt")


def train_on_agent(
    base: Path, folder: Path, changes: dict[str, Any], adapters: Any, death: Any
) -> None:
    """Trains on the recorded rollouts from the last checkpoint; writes curve and weights."""
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, **changes}
    torch.manual_seed(0)
    trainer = on_records(base, folder, peft_config=adapters, **settings)
    if death:
        kill_after(trainer, *death)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trained = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    torch.save((trainer.state.log_history, trained), folder / "trained.pt")


def train_the_step(
    base: Path, prompts: Path, out: Path, settings: HdpoSettings, dies_at: int | None
) -> None:
    """`train_hdpo`, killed once it has reported so many steps."""

    def progress(done: int, total: int, note: str) -> None:
        if done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_hdpo(base, prompts, None, out, settings, seed=0, progress=progress)
