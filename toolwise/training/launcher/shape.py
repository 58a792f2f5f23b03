"""The shape of a Qwen3-VL model, read off its `config.json`, and what follows: its parameters."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from toolwise.errors import InputError
from toolwise.storage import local_copy


class TextShape(BaseModel):
    """The language model, as `text_config` has it."""

    model_config = ConfigDict(frozen=True)

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int

    @property
    def queries(self) -> int:
        """Width of the queries, all heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values, all heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """In and out width of a layer's linear layers, which have no bias."""
        h, q, k, i = self.hidden_size, self.queries, self.keys, self.intermediate_size
        return ((h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h))

    @property
    def layer(self) -> int:
        """Parameters of a layer: its linear layers, two norms, and those of queries and keys."""
        return sum(a * b for a, b in self.linears) + 2 * self.hidden_size + 2 * self.head_dim

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.vocab_size * self.hidden_size


class VisionShape(BaseModel):
    """The vision encoder, as `vision_config` has it."""

    model_config = ConfigDict(frozen=True)

    depth: int
    hidden_size: int
    intermediate_size: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]

    @property
    def patch_values(self) -> int:
        """Values of a patch as the image processor cuts it."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def block(self) -> int:
        """Parameters of a block: attention, MLP and two norms, all with biases."""
        h, i = self.hidden_size, self.intermediate_size
        attention = (3 * h * h + 3 * h) + (h * h + h)
        return attention + (h * i + i) + (i * h + h) + 2 * 2 * h

    @property
    def parameters(self) -> int:
        """All of the encoder's, the mergers of the deepstack included."""
        h = self.hidden_size
        merged = h * self.spatial_merge_size**2
        merger = merged * merged + merged + merged * self.out_hidden_size + self.out_hidden_size
        # The first merger's norm comes before patches are put together, the others' after.
        mergers = merger + 2 * h + len(self.deepstack_visual_indexes) * (merger + 2 * merged)
        embedded = self.patch_values * h + h + self.num_position_embeddings * h
        return embedded + self.depth * self.block + mergers


class ModelShape(BaseModel):
    """A Qwen3-VL model, as its `config.json` has it."""

    model_config = ConfigDict(frozen=True)

    text_config: TextShape
    vision_config: VisionShape
    tie_word_embeddings: bool = False

    @property
    def parameters(self) -> int:
        """All of the model's."""
        return self.language_parameters + self.vision_config.parameters

    @property
    def language_parameters(self) -> int:
        """Those of the language model, embedding and head included."""
        text = self.text_config
        tables = text.embedding * (1 if self.tie_word_embeddings else 2)
        return tables + text.num_hidden_layers * text.layer + text.hidden_size

    def lora_parameters(self, rank: int) -> int:
        """Those of adapters of this rank on the language model's linear layers."""
        text = self.text_config
        return text.num_hidden_layers * sum(rank * (a + b) for a, b in text.linears)

    def cache_bytes(self, bytes_per_value: int = 2) -> int:
        """Bytes of a token in the KV cache."""
        text = self.text_config
        return 2 * text.num_hidden_layers * text.keys * bytes_per_value


def shape_of(checkpoint: str | Path) -> ModelShape:
    """The shape of a checkpoint.

    Args:
        checkpoint: a folder, `s3://…` or `hf://…`; published Qwen3-VL checkpoints are known by
            name, so that nothing is fetched.

    Raises:
        InputError: it has no `config.json`, or is no Qwen3-VL model.
        BackendError: the endpoint failed for good.
    """
    name = str(checkpoint).rstrip("/").rpartition("/")[2].partition("@")[0]
    known = resources.files("toolwise.training.launcher") / "configs" / f"{name}.json"
    if str(checkpoint).startswith("hf://") and known.is_file():
        return _parsed(known.read_text(encoding="utf-8"), checkpoint)
    if "://" in str(checkpoint):
        file = local_copy(f"{str(checkpoint).rstrip('/')}/config.json")
    else:
        file = Path(checkpoint) / "config.json"
    try:
        return _parsed(file.read_text(encoding="utf-8"), checkpoint)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None


def _parsed(text: str, checkpoint: str | Path) -> ModelShape:
    try:
        config: dict[str, Any] = json.loads(text)
        return ModelShape.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{checkpoint}: config.json is no Qwen3-VL model's: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        ) from None
    except ValueError as error:
        raise InputError(f"{checkpoint}: config.json is not valid JSON: {error}") from None
