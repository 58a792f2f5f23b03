"""The in-process engine: a transformers Qwen-VL model that decodes a batch turn by turn.

How a batch is decoded is in `transformers_batch`. Under greedy decoding it writes the tokens
`model.generate` writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForImageTextToText

from toolwise.agent.engine import EngineStats
from toolwise.agent.processor import load_processor
from toolwise.agent.rendering import Renderer
from toolwise.agent.transformers_batch import CachedConversation, TransformersBatch
from toolwise.data import Message
from toolwise.errors import InputError


class TransformersEngine:
    """Decodes with a model in this process.

    Args:
        model: a Qwen3-VL-style model; may be one that is being trained.
        processor: its processor.
        name: what reports call it.

    Raises:
        InputError: `processor` is the tokenizer of a text-only model.
    """

    def __init__(self, model: Any, processor: Any, name: str = "transformers") -> None:
        if not hasattr(processor, "tokenizer"):
            raise InputError(
                f"{name}: the agent loop runs vision-language models of the Qwen-VL family, and "
                f"{type(processor).__name__} is the tokenizer of a text-only model"
            )
        self.model = model
        self.name = name
        # One result may take up no more than an eighth of the context.
        self.max_result_chars = int(min(processor.tokenizer.model_max_length, 2**20)) // 8
        self.renderer = Renderer(processor)
        self.suppressed_ids: Sequence[int] = suppressed_token_ids(processor.tokenizer)
        self.stats = EngineStats()

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None) -> TransformersEngine:
        """Load a checkpoint, onto this process's GPU where the machine has any.

        Raises:
            InputError: `path` is not a checkpoint.
        """
        if not (Path(path) / "config.json").exists():
            raise InputError(f"{path}: no config.json; is this a model checkpoint?")
        torch.set_flush_denormal(True)
        model: Any = AutoModelForImageTextToText.from_pretrained(path)
        model = model.to(device or own_device()).eval()
        return cls(model, load_processor(path), name=Path(path).name)

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> TransformersBatch:
        """Open a batch; nothing is computed before the first turn is asked for.

        Raises:
            InputError: a conversation is longer than the model's context, or the model is sharded.
        """
        if isinstance(self.model, FSDPModule):
            raise InputError(
                f"the weights of {self.name} are sharded over several processes, whose rollouts "
                "take different numbers of turns and cannot gather them in step: let vLLM sample "
                "(`hardware` in the profile), or train adapters (`lora`)"
            )
        prompts = [self.renderer.prompt(list(messages), list(tools)) for messages in conversations]
        context = self.model.config.get_text_config().max_position_embeddings
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        if longest >= context:
            raise InputError(
                f"a conversation of {longest} tokens is too long; {self.name} reads {context}"
            )
        opened = [CachedConversation(p.ids, list(p.images), pending=list(p.ids)) for p in prompts]
        return TransformersBatch(self, opened)


def own_device() -> str:
    """Where this process computes: processes side by side, told apart by `LOCAL_RANK`, share GPUs
    out among them."""
    gpus = torch.cuda.device_count()
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % gpus}" if gpus else "cpu"


def suppressed_token_ids(tokenizer: Any) -> list[int]:
    """Tokens a model must not write: every control token but the end marker.

    A sampled image placeholder, say, would leave a sequence whose images cannot be matched.
    """
    return sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id})
