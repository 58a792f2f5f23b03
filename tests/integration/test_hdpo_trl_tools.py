"""HDPOTrainer on TRL's own tool loop: the loop, its tools and the training are real.

Only what the model writes is set, or an untrained one would never call a tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from recorded_rollouts import G, arguments, base_model, load
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl.chat_template_utils import qwen3_chat_template
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from toolwise.agent.processor import load_processor
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.errors import InputError
from toolwise.synthetic.model import build_tokenizer
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer, hdpo_advantages
from toolwise.training.hdpo.rewards import efficiency_rewards

ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
LOOK = '<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>'


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.

    Returns:
        Their sum.
    """
    return a + b


class Sight:
    """An environment with a picture to be looked at."""

    def reset(self, **_: Any) -> None:
        self.looked = 0

    def look(self, where: str) -> list[dict[str, Any]]:
        """Look at a part of the picture.

        Args:
            where: The part.

        Returns:
            The part, as an image.
        """
        self.looked += 1
        colour = "red" if where == "left" else "blue"
        return [
            {"type": "image", "image": Image.new("RGB", (96, 64), colour)},
            {"type": "text", "text": where},
        ]


def say(trainer: HDPOTrainer, turns: Sequence[Sequence[str]]) -> None:
    """Let rollout i of each group write `turns[i]`, one after the other."""
    tokenizer: Any = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ended = tokenizer.convert_tokens_to_ids("<|im_end|>")
    spoken: dict[int, int] = {}

    def written(
        prompt_ids: list[list[int]], *_: Any, **__: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        # The loop asks again for those that called, in order, with what they have so far.
        spoken.update({} if spoken else dict.fromkeys(range(len(prompt_ids)), 0))
        rows = [row for row in spoken if spoken[row] < len(turns[row % G])]
        assert len(rows) == len(prompt_ids)
        ids = []
        for row in rows:
            text = turns[row % G][spoken[row]]
            spoken[row] += 1
            ids.append([*tokenizer(text, add_special_tokens=False)["input_ids"], ended])
        return ids, None

    trainer._generate_single_turn = written  # type: ignore[method-assign]


def right(completions: list[list[dict[str, Any]]], **_: Any) -> list[float]:
    return [float("7" in str(messages[-1]["content"])) for messages in completions]


def text_only(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer([])
    tokenizer.chat_template = qwen3_chat_template
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config), tokenizer


def vision(folder: Path) -> tuple[Any, Any]:
    base = base_model(folder)
    model = load(base)
    model.config.text_config.max_position_embeddings = 2048  # a token a letter takes room
    return model, load_processor(base)


@pytest.mark.parametrize(
    ("make", "tools", "call"),
    [
        (text_only, {"tools": [add]}, ADD),
        (vision, {"tools": [add]}, ADD),
        (vision, {"environment_factory": Sight}, LOOK),
    ],
    ids=["text only, tools", "vision, tools", "vision, an environment that shows images"],
)
def test_calls_of_trls_loop_are_what_efficiency_counts(
    tmp_path: Path,
    make: Callable[[Path], tuple[Any, Any]],
    tools: dict[str, Any],
    call: str,
) -> None:
    model, processor = make(tmp_path)
    prompts = [[{"role": "user", "content": text}] for text in ("sum?", "total?")]
    trainer = HDPOTrainer(
        model=model,
        reward_funcs=right,
        args=HDPOConfig(
            **arguments(tmp_path, prompts=2, max_completion_length=1000, w_tool=0.5),
        ),
        processing_class=processor,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        **tools,
    )
    # Right by itself; wrong by itself; right after one call; right after two calls in one turn.
    say(trainer, [["7"], ["no idea"], [call, "7"], [f"{call}\n{call}", "7"]])
    seen: list[dict[str, Any]] = []
    score = trainer._generate_and_score_completions

    def scored(rows: Any) -> dict[str, Any]:
        seen.append(score(rows))
        return dict(seen[0])  # as it was before it is shuffled

    trainer._generate_and_score_completions = scored  # type: ignore[method-assign]
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    (batch,) = seen
    correct, calls = torch.tensor([1, 0, 1, 1] * 2), torch.tensor([0, 0, 1, 2] * 2)
    expected = hdpo_advantages(correct.float(), efficiency_rewards(correct, calls), correct, G)
    torch.testing.assert_close(batch["efficiency_advantages"], expected.efficiency)
    # What the tools wrote is in neither loss.
    wrote = (batch["completion_mask"] * batch["tool_mask"]).sum(dim=1)
    assert (wrote < batch["completion_mask"].sum(dim=1)).tolist() == [False, False, True, True] * 2
    if "environment_factory" in tools:
        assert batch["image_grid_thw"].shape[0] == 2 * (1 + 2)
    logged = trainer.state.log_history[0]
    assert logged["accuracy"] == pytest.approx(0.75)
    assert logged["calls_per_rollout"] == pytest.approx(0.75)
    assert logged["tool_call_rate"] == pytest.approx(0.5)
    assert logged["grad_norm"] > 0
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_the_agent_loop_refuses_a_text_only_model_by_name(tmp_path: Path) -> None:
    model, tokenizer = text_only(tmp_path)
    with pytest.raises(InputError, match="is the tokenizer of a text-only model"):
        TransformersEngine(model, tokenizer)


def test_a_turn_goes_on_without_the_conversations_that_got_images(tmp_path: Path) -> None:
    model, processor = vision(tmp_path)
    given: dict[str, Any] = {
        "model": model,
        "reward_funcs": right,
        "processing_class": processor,
        "train_dataset": Dataset.from_dict({"prompt": [[{"role": "user", "content": "sum?"}]] * 2}),
        "environment_factory": Sight,
    }
    options = arguments(tmp_path, prompts=2, max_completion_length=4)
    ids = processor.tokenizer("What is on the sign?")["input_ids"]
    # As the loop asks where other conversations of the batch, which have ended, saw images.
    turn = ([ids, ids[:-1]], [None, []], {}, 1)
    # Where TRL does this by itself, ours can go.
    with pytest.raises(ValueError, match="token_type_ids"):
        GRPOTrainer(args=GRPOConfig(**options), **given)._generate_single_turn(
            *turn, has_tool_images=True
        )
    trainer = HDPOTrainer(args=HDPOConfig(**options), **given)
    written, _ = trainer._generate_single_turn(*turn, has_tool_images=True)
    assert [1 <= len(row) <= 4 for row in written] == [True, True]
