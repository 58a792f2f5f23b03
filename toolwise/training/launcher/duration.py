"""How long a training step takes, from operations and bytes moved; an estimate, not a promise."""

from __future__ import annotations

from typing import NamedTuple

from toolwise.training.hardware import GPUS, Gpu
from toolwise.training.launcher.memory import HALF, processes
from toolwise.training.launcher.shape import ModelShape
from toolwise.training.settings import HdpoSettings, SftSettings

UTILISATION = 0.35
"""Share of a GPU's best rate that training and reading prompts reach."""
MEMORY_UTILISATION = 0.6
"""Share of its best bandwidth that decoding reaches."""
EXPECTED = 0.25
"""Length of a usual conversation, of the longest."""
WRITTEN = 2 / 3
"""Share of a conversation that the model wrote; it reads the rest (prompt, images, results)."""
MAX_RUNNING = 256
"""Conversations one copy of vLLM works on at once, by its own default."""
OVERHEAD = 2 << 30
"""Bytes of vLLM's share that are neither weights nor cache."""


class Duration(NamedTuple):
    """Seconds of a training step's parts, and what they come to.

    Args:
        rollouts, update: seconds of one optimizer step.
        steps: optimizer steps.
        gpus: GPUs held meanwhile.
    """

    rollouts: float
    update: float
    steps: int
    gpus: int

    @property
    def hours(self) -> float:
        """From the first step to the last."""
        return self.steps * (self.rollouts + self.update) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.gpus


def duration(
    shape: ModelShape, settings: SftSettings | HdpoSettings, share: float = EXPECTED
) -> Duration:
    """How long the step takes on its hardware.

    Args:
        shape: of the model.
        settings: with `hardware`.
        share: length of the conversations, of the longest.
    """
    hardware = settings.hardware
    assert hardware is not None
    tokens = hardware.context_tokens * share
    trainers = processes(settings)
    rollouts, seconds, servers = 0, 0.0, 0
    if isinstance(settings, HdpoSettings):
        rollouts = settings.prompts_per_step * settings.num_generations
        servers = hardware.vllm_gpus if hardware.vllm == "server" else 0
        copies = 1 if servers else trainers // hardware.vllm_gpus
        seconds = _rollout_seconds(shape, settings, rollouts / copies, tokens)
    rows = rollouts or settings.batch_size  # type: ignore[union-attr]
    # Forward, forward again where activations are recomputed, and backward: by the inputs, and by
    # the weights, which adapters do without.
    passes = 3 if settings.lora else 4
    if rollouts:  # what vLLM sampled is scored once more, to correct for its rounding
        passes += 1
    work = rows * tokens * passes * token_operations(shape, tokens)
    update = work / (trainers * GPUS[hardware.gpu].flops * UTILISATION)
    return Duration(seconds, update, settings.steps, trainers + servers)


def cached_conversations(shape: ModelShape, settings: HdpoSettings, tokens: float) -> float:
    """Conversations of this length that fit into the cache of one copy of vLLM."""
    hardware = settings.hardware
    assert hardware is not None
    memory = GPUS[hardware.gpu].memory * hardware.vllm_memory - OVERHEAD
    pool = memory * hardware.vllm_gpus - shape.parameters * HALF
    return max(0.0, pool / (shape.cache_bytes() * tokens))


def _rollout_seconds(
    shape: ModelShape, settings: HdpoSettings, rollouts: float, tokens: float
) -> float:
    """One copy of vLLM writing its share of the rollouts."""
    hardware = settings.hardware
    assert hardware is not None
    gpu, spread = GPUS[hardware.gpu], hardware.vllm_gpus
    written = tokens * WRITTEN
    running = min(rollouts, MAX_RUNNING, max(1.0, cached_conversations(shape, settings, tokens)))
    writing = rollouts / running * written * token_seconds(shape, gpu, running, tokens, spread)
    reading = rollouts * (tokens - written) * token_operations(shape, tokens)
    # The last conversation to end is the longest, and may run alone.
    longest = hardware.context_tokens * WRITTEN * token_seconds(shape, gpu, 1, tokens, spread)
    return max(writing, longest) + reading / (spread * gpu.flops * UTILISATION)


def token_seconds(
    shape: ModelShape, gpu: Gpu, running: float, tokens: float, spread: int = 1
) -> float:
    """How long vLLM takes to write one more token in every conversation it works on.

    Args:
        shape: of the model.
        gpu: the kind it runs on.
        running: conversations at once.
        tokens: their length in the end.
        spread: GPUs the model is spread over.
    """
    moved = shape.parameters * HALF + running * shape.cache_bytes() * tokens / 2
    computed = running * token_operations(shape, tokens)
    return max(
        moved / (spread * gpu.bandwidth * MEMORY_UTILISATION),
        computed / (spread * gpu.flops * UTILISATION),
    )


def token_operations(shape: ModelShape, tokens: float) -> float:
    """Operations of a token's forward pass, attention to half the conversation included."""
    text = shape.text_config
    weights = shape.parameters - (0 if shape.tie_word_embeddings else text.embedding)
    return 2 * weights + 2 * text.num_hidden_layers * text.queries * tokens
