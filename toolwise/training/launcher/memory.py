"""Memory of one training process, part by part, in closed form.

N parameters; n tokens of the rows a process works through at once; L layers; V vocabulary; h, i, q
and k widths of the residual stream, the MLP, the queries and the keys. Sizes are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from toolwise.errors import InputError
from toolwise.training.launcher.shape import ModelShape
from toolwise.training.settings import HdpoSettings, SftSettings

FLOAT = 4
HALF = 2
TILE = (4096, 32768)
"""Tokens and vocabulary of a tile in which TRL's fused head works."""

IMAGE_SHARE = 0.25
"""Share of a conversation's tokens that are an image's."""
RUNTIME = 4 << 30
"""Bytes of main memory of one process with Python, torch, CUDA and vLLM, before it loads anything;
an assumption."""


class Part(NamedTuple):
    """What takes memory, how much, and how that comes about."""

    name: str
    size: float
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Load:
    """What one process holds and works through at once.

    Args:
        shape: of the model.
        trainable: parameters that get a gradient.
        adapters: parameters beside the model's own.
        shards: processes over which weights, gradients and moments are spread.
        weight_bytes: of a weight at rest.
        value_bytes: of an activation.
        rows: conversations of one forward pass.
        tokens: of each.
        recompute: activations inside a layer are computed again in the backward pass.
        frozen_vision: the vision encoder keeps nothing for a backward pass.
    """

    shape: ModelShape
    trainable: int
    adapters: int
    shards: int
    weight_bytes: int
    value_bytes: int
    rows: int
    tokens: int
    recompute: bool
    frozen_vision: bool

    @classmethod
    def of(
        cls, shape: ModelShape, settings: SftSettings | HdpoSettings, rows: int, tokens: int
    ) -> Load:
        """The load of a training step, as the launcher starts it."""
        gpu = settings.hardware is not None
        lora = settings.lora
        adapters = shape.lora_parameters(lora.rank) if lora else 0
        language_only = settings.freeze_vision or lora is not None
        weights = shape.language_parameters if language_only else shape.parameters
        return cls(
            shape=shape,
            trainable=adapters or weights,
            adapters=adapters,
            shards=processes(settings) if gpu and not lora else 1,
            weight_bytes=HALF if gpu and lora else FLOAT,
            value_bytes=HALF if gpu else FLOAT,
            rows=rows,
            tokens=tokens,
            recompute=gpu,
            frozen_vision=language_only,
        )

    @property
    def resting(self) -> list[Part]:
        """What stays between two updates: weights and Adam's moments."""
        own, over = self.shape.parameters, _over(self.shards)
        weights = Part(
            "weights",
            (own * self.weight_bytes + self.adapters * FLOAT) / self.shards,
            f"{_count(own)} × {self.weight_bytes}"
            + (f" + {_count(self.adapters)} × 4 of adapters" if self.adapters else "")
            + over,
        )
        moments = Part(
            "optimiser",
            self.trainable * 2 * FLOAT / self.shards,
            f"{_count(self.trainable)} × 8{over}",
        )
        return [weights, moments]

    @property
    def update(self) -> list[Part]:
        """Everything one forward and backward pass and the step after it take."""
        gradients = Part(
            "gradients",
            self.trainable * FLOAT / self.shards,
            f"{_count(self.trainable)} × 4{_over(self.shards)}",
        )
        return [*self.resting, gradients, *self._copies(), self._activations(), self._head()]

    def cache(self, rows: int) -> Part:
        """The KV cache of rollouts that this process makes, all of them at once."""
        size = self.shape.cache_bytes(self.weight_bytes)
        how = f"{rows} × {self.tokens:,} tokens × {size / 1024:,.0f} KiB"
        return Part("KV cache", rows * self.tokens * size, how)

    def loaded(self, processes: int) -> Part:
        """Weights in the main memory of a node, before they go to its GPUs.

        Where they are sharded its first process reads them for all; otherwise each does.
        """
        readers = 1 if self.shards > 1 else processes
        own = self.shape.parameters
        how = f"{_count(own)} × {self.weight_bytes}, read by {_processes(readers)}"
        return Part("weights", readers * own * self.weight_bytes, how)

    def gathered_moments(self) -> Part:
        """Adam's moments in the main memory of the process that writes or reads a checkpoint."""
        return Part(
            "optimiser", self.trainable * 2 * FLOAT, f"{_count(self.trainable)} × 8, in one process"
        )

    def processes_on_host(self, processes: int, data: float) -> list[Part]:
        """What the processes of a node hold in its main memory all along.

        Args:
            processes: of the node.
            data: bytes of the data set, which each of them reads.
        """
        vision = self.shape.vision_config
        patches = self.rows * self.tokens * IMAGE_SHARE * vision.spatial_merge_size**2
        pixels = patches * vision.patch_values * FLOAT
        how = f"{_processes(processes)} × {pixels / 2**20:,.0f} MiB of pixels"
        if data:
            how = f"{_processes(processes)} × ({pixels / 2**20:,.0f} MiB of pixels + the data set)"
        return [
            Part("runtime", processes * RUNTIME, f"{_processes(processes)} × {RUNTIME >> 30} GiB"),
            Part("data", processes * (pixels + data), how),
        ]

    def _copies(self) -> list[Part]:
        """Weights in the form they are multiplied in, where that is not the one at rest."""
        text = self.shape.text_config
        if self.shards > 1:
            layers = text.num_hidden_layers * text.layer
            vision = self.shape.vision_config
            root = self.shape.parameters - layers - vision.depth * vision.block
            size = (root + 2 * text.layer) * 2 * HALF
            how = f"({_count(root)} outside layers + 2 layers of {_count(text.layer)}) × (2 + 2)"
            return [Part("gathered weights and their gradients", size, how)]
        if self.value_bytes < self.weight_bytes:
            count = self.shape.parameters
            return [Part("weights in bf16", count * HALF, f"{_count(count)} × 2")]
        return []

    def _activations(self) -> Part:
        text, vision = self.shape.text_config, self.shape.vision_config
        value, n = self.value_bytes, self.rows * self.tokens
        # The residual stream is in float32 where the weights are, unless they are gathered in bf16.
        stream = FLOAT if self.weight_bytes == FLOAT and self.shards == 1 else HALF
        h, i, q, k = text.hidden_size, text.intermediate_size, text.queries, text.keys
        # Kept by autograd of one layer, a token: norms (what comes in, in float32; normalised;
        # scaled), queries and keys (projected, normalised, rotated), values, what attention gives,
        # gathered from its heads, and gate, its activation, up and their product.
        kept = 2 * h * FLOAT + (4 * h + 5 * q + 4 * k + 4 * i) * value
        # Gradients on their way through a layer.
        passing = (3 * i + 2 * h) * value
        patches = n * IMAGE_SHARE * vision.spatial_merge_size**2
        block = (11 * vision.hidden_size + 2 * vision.intermediate_size) * value
        if self.recompute:
            layers = text.num_hidden_layers * h * stream + kept + passing
            blocks = (
                0 if self.frozen_vision else vision.depth * vision.hidden_size * stream
            ) + block
        else:
            layers = text.num_hidden_layers * kept + passing
            blocks = block * (1 if self.frozen_vision else vision.depth)
        how = (
            f"{self.rows} × {self.tokens:,} tokens × {layers / 1024:,.0f} KiB"
            f" + {patches:,.0f} patches × {blocks / 1024:,.0f} KiB"
            f" ({'recomputed layer by layer' if self.recompute else 'all layers kept'})"
        )
        return Part("activations", n * layers + patches * blocks, how)

    def _head(self) -> Part:
        text, n = self.shape.text_config, self.rows * self.tokens
        tile = min(n, TILE[0]) * min(text.vocab_size, TILE[1]) * self.value_bytes
        gradient = 0 if self.adapters else text.embedding * FLOAT
        hidden = n * text.hidden_size * (self.value_bytes + FLOAT)
        how = "tiles of logits, the last hidden states" + (", the head's gradient" * (gradient > 0))
        return Part("head", tile + gradient + hidden, how)


def processes(settings: SftSettings | HdpoSettings) -> int:
    """Processes of a step over all its nodes."""
    return settings.processes * (settings.hardware.nodes if settings.hardware else 1)


def rows_at_once(settings: SftSettings | HdpoSettings) -> int:
    """Conversations of one forward pass of a process.

    Raises:
        InputError: a step's conversations do not divide evenly.
    """
    if isinstance(settings, HdpoSettings):
        section, rows = "hdpo", settings.prompts_per_step * settings.num_generations
    else:
        section, rows = "sft", settings.batch_size
    return divided(rows, processes(settings), settings.accumulate, section)


def divided(batch_size: int, sharing: int, accumulate: int, section: str) -> int:
    """Rows of one part of a batch.

    Args:
        batch_size: rows of the whole batch.
        sharing: processes among which it is divided.
        accumulate: parts in which each of them works its share off.
        section: of the profile, for the message.

    Raises:
        InputError: it does not divide evenly; names the settings that would.
    """
    share, left = divmod(batch_size, sharing)
    if left == 0 and share % accumulate == 0:
        return share // accumulate
    if left:
        size = "prompts_per_step × hdpo.num_generations" if section == "hdpo" else "batch_size"
        cure = f"set {section}.{size} to a multiple of {sharing * accumulate:,}"
    else:
        divisors = [parts for parts in range(1, share + 1) if share % parts == 0]
        near = sorted(divisors, key=lambda parts: abs(parts - accumulate))[:3]
        cure = f"set {section}.accumulate to {' or '.join(map(str, sorted(near)))}"
    raise InputError(
        f"{section}: a batch of {batch_size:,} does not divide into "
        f"{_processes(sharing)} × {accumulate:,} parts (accumulate): {cure}"
    )


def total(parts: list[Part]) -> float:
    """Bytes of all parts."""
    return sum(part.size for part in parts)


def _over(shards: int) -> str:
    return f" / {shards} GPUs" if shards > 1 else ""


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} G" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
