"""HDPO with LoRA adapters on the agent loop: rollouts follow them, and only they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from recorded_rollouts import (
    PROMPTS,
    RecordedAgent,
    arguments,
    base_model,
    load,
    loss_and_gradients,
    right,
    scored,
)

from toolwise.agent import Limits, Sampling
from toolwise.agent.processor import load_processor
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer
from toolwise.training.hdpo.agent import InProcessAgent

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q|v)_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("peft"))


@pytest.fixture
def trainer(base: Path, tmp_path: Path) -> HDPOTrainer:
    processor = load_processor(base)
    return HDPOTrainer(
        model=load(base),
        reward_funcs=right,
        args=HDPOConfig(**arguments(tmp_path, learning_rate=1e-2, max_steps=3, beta=0.1)),
        processing_class=processor,
        agent=RecordedAgent(processor),
        tasks=PROMPTS,
        peft_config=LORA,
    )


def test_only_adapters_get_gradients_and_learn(trainer: HDPOTrainer) -> None:
    _, gradients = loss_and_gradients(trainer, scored(trainer))
    assert gradients
    assert all("lora_" in name for name in gradients)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    # The reference is the model without its adapters.
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > 1e-4


def test_rollouts_are_sampled_with_the_adapters(
    trainer: HDPOTrainer, base: Path, tmp_path: Path
) -> None:
    processor = load_processor(base)
    inner: Any = trainer.model.get_base_model()
    agent = InProcessAgent(TransformersEngine(inner, processor), (), Limits(max_turns=1))
    tasks: Sequence[Any] = PROMPTS * 2
    sampling = Sampling(temperature=1.0, max_tokens=6, seed=0)
    fresh = agent.answer(tasks, sampling)
    trainer.train()
    learnt = agent.answer(tasks, sampling)
    records = [rollout.tokens for rollout in learnt if rollout.tokens]
    assert [r.tokens for r in fresh] != records
    width = max(len(record.completion_ids) for record in records)
    trainer._agent = agent
    with torch.no_grad():
        logps, _ = trainer.record_logps(trainer.model, records, width)
    for row, record in enumerate(records):
        sampled = torch.tensor(record.logprobs)
        torch.testing.assert_close(logps[row, : len(sampled)], sampled, atol=1e-4, rtol=0)
