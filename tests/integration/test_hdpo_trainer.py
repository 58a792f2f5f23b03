"""HDPOTrainer trained: against GRPOTrainer, and on the rollouts of the engine in process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from toy_training import TASKS, cold_start
from transformers import AutoModelForImageTextToText
from trl import GRPOConfig, GRPOTrainer

from toolwise.agent import Limits
from toolwise.agent.processor import load_processor
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data.parquet import write_tasks
from toolwise.errors import InputError
from toolwise.tools import Tool, open_tools
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer, hdpo_advantages
from toolwise.training.hdpo.agent import InProcessAgent
from toolwise.training.hdpo.run import task_accuracy, train_hdpo
from toolwise.training.settings import HdpoSettings

G = 4
PROMPTS = TASKS[:3]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_start(tmp_path_factory.mktemp("hdpo"))


@pytest.fixture(scope="module")
def tools() -> Iterator[Sequence[Tool]]:
    opened = open_tools(None)
    yield opened
    for tool in opened:
        asyncio.run(tool.aclose())


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": len(PROMPTS) * G,
        "num_generations": G,
        "max_completion_length": 90,
        "temperature": 1.0,
        "learning_rate": 1e-4,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        **changes,
    }


def on_agent(
    checkpoint: Path,
    tools: Sequence[Tool],
    folder: Path,
    reward: Any = task_accuracy,
    **changes: Any,
) -> HDPOTrainer:
    """A trainer whose rollouts come from the agent loop with the real sandbox."""
    processor = load_processor(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    engine = TransformersEngine(model, processor)
    return HDPOTrainer(
        model=model,
        reward_funcs=reward,
        args=HDPOConfig(**arguments(folder, **changes)),
        processing_class=processor,
        agent=InProcessAgent(engine, tools, Limits(max_turns=3)),
        tasks=PROMPTS,
    )


def scored_batch(trainer: HDPOTrainer) -> dict[str, Any]:
    trainer.model.train()
    rows = [{"prompt": index} for index in range(len(PROMPTS)) for _ in range(G)]
    return trainer._generate_and_score_completions(rows)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name in one.keys() | other.keys():
        first = one.get(name, torch.zeros(()))
        second = other.get(name, torch.zeros(()))
        torch.testing.assert_close(first + 0 * second, second + 0 * first, atol=2e-6, rtol=2e-4)


class TestOnTrlsOwnGeneration:
    """A plain TRL script: prompts in a data set, TRL generates."""

    @staticmethod
    def longer_is_better(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids) % 5) for ids in completion_ids]

    def trained(self, kind: type[GRPOTrainer], checkpoint: Path, args: GRPOConfig) -> Any:
        """One step of a trainer; returns its logged metrics and each parameter's gradient."""
        prompts = [[{"role": "user", "content": text}] for text in ("sum?", "colour?", "how?")]
        trainer = kind(
            model=AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32),
            reward_funcs=self.longer_is_better,
            args=args,
            processing_class=load_processor(checkpoint),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
        )
        losses: list[float] = []
        caught: dict[str, torch.Tensor] = {}
        compute = trainer.compute_loss

        def computed(*inputs: Any, **more: Any) -> torch.Tensor:
            loss = compute(*inputs, **more)
            losses.append(loss.item())
            return loss

        trainer.compute_loss = computed  # type: ignore[method-assign]
        for name, parameter in trainer.model.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: caught.__setitem__(name, p.grad.clone())
            )
        trainer.train()
        return losses, caught

    def test_w_tool_0_gives_exactly_grpo_trainers_loss_and_gradients(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        # Two updates from one generation, so that the second is off policy and clips.
        settings = arguments(
            tmp_path,
            num_iterations=2,
            max_steps=2,
            learning_rate=3e-3,
            max_completion_length=12,
        )
        theirs = self.trained(GRPOTrainer, checkpoint, GRPOConfig(**settings))
        ours = self.trained(HDPOTrainer, checkpoint, HDPOConfig(**settings, w_tool=0.0))
        assert len(ours[0]) == 2
        assert ours[0][1] != 0.0
        assert ours[0] == theirs[0]
        assert ours[1].keys() == theirs[1].keys()
        assert any(gradient.any() for gradient in theirs[1].values())
        for name, gradient in theirs[1].items():
            assert torch.equal(ours[1][name], gradient), name


class TestOnTheAgentLoop:
    def test_recomputed_log_probabilities_are_the_sampled_ones(
        self, checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
    ) -> None:
        trainer = on_agent(checkpoint, tools, tmp_path)
        batch = scored_batch(trainer)
        records = batch["records"]
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
        with torch.no_grad():
            logps, entropies = trainer.record_logps(trainer.model, records, mask.shape[1])
        sampled = batch["sampling_per_token_logps"]
        assert any(len(r.images) > r.prompt_images > 0 for r in records)  # tools showed images
        assert any(0 in r.mask for r in records)
        torch.testing.assert_close(logps[mask], sampled[mask], atol=1e-4, rtol=0)
        assert not logps[~mask].any()
        assert (entropies[mask] >= 0).all()

        # Without the images the tools showed, they would not be.
        blind = [_without_tool_images(trainer, record) for record in records]
        with torch.no_grad():
            wrong, _ = trainer.record_logps(trainer.model, blind, mask.shape[1])
        assert (wrong - sampled)[mask].abs().max() > 1e-2

    def test_tokens_the_engine_never_samples_are_no_part_of_the_distribution(
        self, checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
    ) -> None:
        # An untrained model gives control tokens their full share, some two in a hundred.
        trainer = on_agent(checkpoint.with_name("base"), tools, tmp_path, max_completion_length=8)
        batch = scored_batch(trainer)
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
        with torch.no_grad():
            logps, _ = trainer.record_logps(trainer.model, batch["records"], mask.shape[1])
        sampled = batch["sampling_per_token_logps"]
        torch.testing.assert_close(logps[mask], sampled[mask], atol=1e-4, rtol=0)
        assert trainer.model.get_output_embeddings().bias is None

    def test_parts_of_a_batch_add_up_to_the_whole(
        self, checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
    ) -> None:
        def gradient(parts: int) -> dict[str, torch.Tensor]:
            trainer = on_agent(
                checkpoint,
                tools,
                tmp_path,
                per_device_train_batch_size=len(PROMPTS) * G // parts,
                gradient_accumulation_steps=parts,
                max_grad_norm=0.0,
                w_tool=1.0,
            )
            caught: dict[str, torch.Tensor] = {}
            for name, parameter in trainer.model.named_parameters():
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name: caught.__setitem__(name, p.grad.clone())
                )
            trainer.train()
            return caught

        whole = gradient(1)
        assert any(value.abs().max() > 1e-4 for value in whole.values())
        assert_close(whole, gradient(3))

    def test_what_is_logged(self, checkpoint: Path, tools: Sequence[Tool], tmp_path: Path) -> None:
        trainer = on_agent(checkpoint, tools, tmp_path)
        trainer.train()
        logged = trainer.state.log_history[0]
        for name in (
            "accuracy",
            "accuracy_reward",
            "format",
            "tool_call_rate",
            "calls_per_rollout",
            "missed_call_rate",
            "collapse_alarm",
            "judge_failures",
            "qualifying/rollouts",
            "qualifying/groups",
            "advantage/accuracy",
            "advantage/efficiency",
            "loss/accuracy",
            "loss/efficiency",
            "entropy",
            "clip_ratio/region_mean",
            "grad_norm",
            "seconds/reward",
            "seconds/update",
        ):
            assert isinstance(logged[name], float), name
        assert 0 < logged["tool_call_rate"] <= 1

    def test_each_step_says_where_its_time_and_its_tokens_went(
        self, checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
    ) -> None:
        trainer = on_agent(checkpoint, tools, tmp_path, learning_rate=0.0)
        scored_batch(trainer)  # the log is of a step, whatever was computed before
        before = replace(trainer._agent.stats)
        trainer._metrics["train"].clear()
        batch = scored_batch(trainer)
        metrics = {name: value for name, (value,) in trainer._metrics["train"].items()}
        wrote = int((batch["completion_mask"] * batch["tool_mask"]).sum())
        written = metrics["rollout/tokens_per_second"] * metrics["seconds/rollout"]
        assert written == pytest.approx(wrote)
        now = trainer._agent.stats
        computed, padding = now.computed - before.computed, now.padding - before.padding
        assert metrics["rollout/padding_share"] == padding / (computed + padding)
        shared = now.shared - before.shared
        assert metrics["rollout/shared_share"] == shared / (computed + shared) > 0.5  # groups of 4

    def test_coupled_is_one_advantage_of_the_summed_reward(
        self, checkpoint: Path, tools: Sequence[Tool], tmp_path: Path
    ) -> None:
        trainer = on_agent(checkpoint, tools, tmp_path, variant="coupled", alpha=0.5)
        seen: list[Any] = []
        score = trainer._calculate_rewards

        def remembered(*inputs: Any) -> torch.Tensor:
            rewards = score(*inputs)
            seen.append(trainer._scores)
            return rewards

        trainer._calculate_rewards = remembered  # type: ignore[method-assign]
        batch = scored_batch(trainer)
        (scores,) = seen
        reward = scores.accuracy + 0.5 * scores.efficiency
        expected = hdpo_advantages(reward, scores.efficiency, scores.correct, G, eps=1e-4).accuracy
        torch.testing.assert_close(batch["advantages"], expected)
        trainer.current_gradient_accumulation_steps = 1
        trainer._compute_loss(trainer.model, batch)
        assert "loss/efficiency" not in trainer._metrics["train"]


def _without_tool_images(trainer: HDPOTrainer, record: Any) -> Any:
    """The same tokens, with the prompt's image in place of each one a tool showed."""
    from toy_training import BLUE, RED

    other = {RED: BLUE, BLUE: RED}
    kept = record.images[: record.prompt_images]
    return replace(record, images=kept + tuple(other[i] for i in record.images[len(kept) :]))


def test_too_few_prompts_are_said(checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "tasks.parquet"
    write_tasks(prompts, PROMPTS[:2])
    with pytest.raises(InputError, match="holds 2 prompts, and a step takes 3"):
        train_hdpo(checkpoint, prompts, None, tmp_path / "out", HdpoSettings(prompts_per_step=3))
