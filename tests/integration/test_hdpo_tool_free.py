"""Tool-free rollouts in HDPOTrainer, with the real agent loop and sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import TASKS, cold_start
from transformers import AutoModelForImageTextToText

from toolwise.agent import Limits
from toolwise.agent.processor import load_processor
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.tools import Tool, open_tools
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer, hdpo_advantages
from toolwise.training.hdpo.agent import InProcessAgent
from toolwise.training.hdpo.difficulty import eapo_rewards
from toolwise.training.hdpo.run import task_accuracy

G = 4
PROMPTS = TASKS[:3]
FREE = torch.arange(len(PROMPTS) * G) % G >= 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_start(tmp_path_factory.mktemp("hdpo"))


@pytest.fixture(scope="module")
def tools() -> Iterator[Sequence[Tool]]:
    opened = open_tools(None)
    yield opened
    for tool in opened:
        asyncio.run(tool.aclose())


def trainer_on(checkpoint: Path, tools: Sequence[Tool], folder: Path, **changes: Any) -> Any:
    processor = load_processor(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    settings = {
        "max_steps": 1,
        "per_device_train_batch_size": len(PROMPTS) * G,
        "num_generations": G,
        "max_completion_length": 90,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        **changes,
    }
    trainer = HDPOTrainer(
        model=model,
        reward_funcs=task_accuracy,
        args=HDPOConfig(output_dir=str(folder), **settings),
        processing_class=processor,
        agent=InProcessAgent(TransformersEngine(model, processor), tools, Limits(max_turns=3)),
        tasks=PROMPTS,
    )
    trainer.model.train()
    return trainer


def scored_batch(trainer: HDPOTrainer) -> dict[str, Any]:
    rows = [{"prompt": index} for index in range(len(PROMPTS)) for _ in range(G)]
    return trainer._generate_and_score_completions(rows)


def log_likelihood(trainer: Any, prompt_ids: tuple[int, ...], record: Any) -> float:
    """Of a whole completion after a prompt, by a plain forward pass without any of the trainer."""
    ids = torch.tensor([[*prompt_ids, *record.completion_ids]])
    model, processor = trainer.model, trainer._agent.renderer
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if record.images:
        pixels = [processor.pixels(image) for image in record.images]
        inputs["pixel_values"] = torch.cat([p.values for p in pixels])
        inputs["image_grid_thw"] = torch.tensor([p.grid for p in pixels])
        inputs["mm_token_type_ids"] = (ids == processor.image_id).int()
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    logits[:, list(trainer._agent.suppressed_ids)] = -1e4
    written = len(record.completion_ids)
    logps = logits[-written - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(record.completion_ids)[:, None]).sum().item()


def test_weights_are_those_of_the_two_prompts_likelihoods(
    checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
) -> None:
    trainer = trainer_on(checkpoint, tools, tmp_path, tool_free=2)
    seen: list[Any] = []
    weigh = trainer._mixture_weights
    trainer._mixture_weights = lambda *given: seen.append((given, weigh(*given))) or seen[-1][1]
    batch = scored_batch(trainer)
    ((rollouts, free), weights) = seen[0]
    assert free == FREE.tolist()
    kinds = set()
    for row, (rollout, record) in enumerate(zip(rollouts, batch["records"], strict=True)):
        called = any(message.get("tool_calls") for message in rollout.messages)
        offered = trainer._agent.prompt_ids(rollout.task, tool_free=False)
        alone = trainer._agent.prompt_ids(rollout.task, tool_free=True)
        assert record.prompt_ids == offered != alone
        kinds.add((bool(FREE[row]), called))
        if called:
            expected = 0.0 if FREE[row] else 2.0  # 1/(1 − 1/2)
        else:
            ratio = log_likelihood(trainer, alone, record) - log_likelihood(
                trainer, offered, record
            )
            expected = 1 / (0.5 + 0.5 * torch.tensor(ratio).exp().item())
        assert weights[row].item() == pytest.approx(expected, abs=2e-3), row
    assert {(False, True), (False, False), (True, False)} <= kinds

    # They are factors on both channels' advantages, and nothing else.
    again = trainer_on(checkpoint, tools, tmp_path, tool_free=2, tool_free_correction=False)
    plain = scored_batch(again)
    for name in ("advantages", "efficiency_advantages"):
        torch.testing.assert_close(batch[name], plain[name] * weights)
    assert plain["efficiency_advantages"].any()
    assert plain["advantages"].any()


def test_without_tool_free_rollouts_their_settings_change_nothing(
    checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
) -> None:
    found = []
    for correction in (True, False):
        trainer = trainer_on(checkpoint, tools, tmp_path, tool_free_correction=correction)
        trainer.current_gradient_accumulation_steps = 1
        batch = scored_batch(trainer)
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        found.append((loss, [p.grad for p in trainer.model.parameters() if p.grad is not None]))
        assert "tool_free/weight" not in trainer._metrics["train"]
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(one, other) for one, other in zip(*(g for _, g in found), strict=True))


def test_difficulty_aware_efficiency_is_weighted_by_the_share_of_right_rollouts(
    checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
) -> None:
    def half_right(rollout: Sequence[Any], **_: Any) -> list[float]:
        return [float(row % G != 0) if row < G else 1.0 for row in range(len(rollout))]

    advantages = []
    for aware in (False, True):
        trainer = trainer_on(checkpoint, tools, tmp_path, difficulty_aware=aware)
        trainer.reward_funcs = [half_right]
        advantages.append(scored_batch(trainer)["efficiency_advantages"])
    plain, aware = advantages
    assert plain.any()
    torch.testing.assert_close(aware[:G], 0.75 * plain[:G])  # three of four are right
    torch.testing.assert_close(aware[G:], plain[G:])


def test_eapo_is_one_advantage_of_its_reward(
    checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
) -> None:
    trainer = trainer_on(checkpoint, tools, tmp_path, variant="eapo", alpha=0.7)
    seen: list[Any] = []
    score = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *given: (score(*given), seen.append(trainer._scores))[0]
    batch = scored_batch(trainer)
    accuracy, _, correct, calls = seen[0]
    reward = eapo_rewards(accuracy, correct, calls, G, beta=0.7)
    assert not torch.equal(reward, accuracy)
    expected = hdpo_advantages(reward, reward, correct, G, eps=1e-4).accuracy
    torch.testing.assert_close(batch["advantages"], expected)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch)
    assert "loss/efficiency" not in trainer._metrics["train"]
