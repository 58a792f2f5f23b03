"""The machines a profile's training steps run on, apart from the code: profiles load fast."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

GpuKind = Literal["a100-80gb", "h100-80gb", "h200-141gb", "l40s-48gb"]


class Gpu(NamedTuple):
    """A kind of GPU, from its vendor's data sheet.

    Args:
        memory: bytes that the driver leaves to programs.
        flops: dense bf16 operations a second, at best.
        bandwidth: bytes a second from its memory, at best.
    """

    memory: int
    flops: float
    bandwidth: float


GPUS: dict[GpuKind, Gpu] = {
    "a100-80gb": Gpu(79 << 30, 312e12, 2.04e12),
    "h100-80gb": Gpu(79 << 30, 989e12, 3.35e12),
    "h200-141gb": Gpu(139 << 30, 989e12, 4.80e12),
    "l40s-48gb": Gpu(44 << 30, 362e12, 0.86e12),
}


class HardwareSettings(BaseModel):
    """Machines of the training steps; a step's `processes` says how many GPUs of a node it takes.

    Args:
        gpu: their kind.
        nodes: machines of one training step; several need a cluster.
        context_tokens: the longest conversation, images included: what memory has to be there for,
            and where vLLM ends a rollout.
        vllm: rollouts by vLLM on the trainer's own GPUs while it waits (`colocated`), or on a
            server beside it (`server`).
        vllm_gpus: GPUs of the server, which spreads the model over them.
        vllm_memory: share of a GPU's memory that vLLM takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: GpuKind
    nodes: PositiveInt = 1
    context_tokens: PositiveInt = 24_576
    vllm: Literal["colocated", "server"] = "colocated"
    vllm_gpus: PositiveInt = 1
    vllm_memory: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _whole_copies(self) -> Self:
        # Trainers that shared a copy would have to sample in step, and their rollouts take
        # different numbers of turns.
        if self.vllm == "colocated" and self.vllm_gpus > 1:
            raise ValueError("vllm_gpus is for vllm: server; a colocated copy has one GPU")
        return self
