"""The tiny model: a Qwen3-VL of about a million parameters with a small tokenizer of its own.

Same architecture, special tokens and chat template as the published models, so that nothing
downstream knows the difference; small enough to train from scratch on a laptop CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl.chat_template_utils import qwen3_vl_chat_template

from toolwise.agent.processor import ImageProcessor

VIEW = 48
"""Side of the square view the model gets of any image, in pixels."""
PATCH = 8

QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VISION_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
PROTOCOL_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<answer>",
    "</answer>",
    "<reason>",
    "</reason>",
)


def build_tokenizer(
    tools: Sequence[dict[str, Any]], phrases: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, plus one token for each string that never varies.

    Args:
        tools: JSON schemas whose lines in the prompt become one token each.
        phrases: fixed wordings of the environment that become one token each.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in QWEN_SPECIALS if t not in _NAMED],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )
    fast.chat_template = qwen3_vl_chat_template
    fixed = [*PROTOCOL_TOKENS, "assistant\n", "user\n", "system\n", *_tool_lines(fast, tools)]
    fixed += [phrase for phrase in phrases if phrase not in fixed]
    whole: Any = [AddedToken(text, normalized=False, special=False) for text in fixed]
    fast.add_tokens(whole)
    return fast


_NAMED = ("<|im_end|>", "<|endoftext|>")


def _tool_lines(tokenizer: PreTrainedTokenizerFast, tools: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the prompt's tool block, as the chat template renders it."""
    if not tools:
        return []
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], tools=list(tools), tokenize=False
    )
    assert isinstance(text, str)
    block = text.split("<|im_start|>system\n", 1)[1].split("<|im_end|>", 1)[0]
    return list(dict.fromkeys(line for line in block.split("\n") if len(line) > 3))


def build_processor(tools: Sequence[dict[str, Any]], phrases: Sequence[str] = ()) -> ImageProcessor:
    """Tokenizer and image processor of the tiny model; every image becomes a 48×48 view."""
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=1,
        merge_size=2,
        min_pixels=VIEW * VIEW,
        max_pixels=VIEW * VIEW,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )
    tokenizer = build_tokenizer(tools, phrases)
    return ImageProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0
) -> Qwen3VLForConditionalGeneration:
    """The untrained tiny model (about 1 M parameters, float32)."""
    vision_ids: dict[str, Any] = {
        name: tokenizer.convert_tokens_to_ids(token) for name, token in VISION_TOKENS.items()
    }
    torch.manual_seed(seed)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8, 4, 4],
                "mrope_interleaved": True,
            },
            # At transformers' default of 0.02 a model this small sits on a plateau.
            "initializer_range": 0.08,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": PATCH,
            "temporal_patch_size": 1,
            "spatial_merge_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": (VIEW // PATCH) ** 2,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.08,
        },
        tie_word_embeddings=True,
        **vision_ids,
    )
    model = Qwen3VLForConditionalGeneration(config)
    # Positions as loud as patches: at initializer_range the model does not learn where things are.
    torch.nn.init.normal_(model.model.visual.pos_embed.weight, std=0.8)
    generation = model.generation_config
    assert generation is not None
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    return model
