"""What the training steps of a profile need, and whether it is there, before they start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toolwise.errors import InputError
from toolwise.training.hardware import GPUS
from toolwise.training.launcher.duration import (
    EXPECTED,
    OVERHEAD,
    Duration,
    cached_conversations,
    duration,
)
from toolwise.training.launcher.memory import FLOAT, HALF, Load, Part, processes, total
from toolwise.training.launcher.shape import ModelShape, shape_of
from toolwise.training.settings import HdpoSettings, LoraSettings, SftSettings

if TYPE_CHECKING:
    from toolwise.profile import Profile

HEADROOM = 0.92
"""Share of a GPU's memory that is planned with: the rest goes to fragments and the runtime."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of an optimizer step, and what it holds in memory at its peak."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> float:
        """Bytes in all."""
        return total(list(self.parts))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one training step needs of each GPU, or of this machine for each process.

    Args:
        step: its name.
        settings: its section of the profile.
        shape: of the model it starts from.
        place: what it runs on, in words.
        there: bytes of a GPU, or of this machine, where they were looked up.
        room: bytes there are for each process.
        phases: what happens there by turns.
        server: what vLLM's GPUs hold, where it has some of its own.
        conversations: of the longest kind that one copy of vLLM can hold; None without vLLM.
        usual: how long it takes with conversations of the usual length; None without GPUs.
        longest: how long with conversations that all are the longest.
    """

    step: str
    settings: SftSettings | HdpoSettings
    shape: ModelShape
    place: str
    there: float | None
    room: float
    phases: tuple[Phase, ...]
    server: Phase | None = None
    conversations: int | None = None
    usual: Duration | None = None
    longest: Duration | None = None

    @property
    def faults(self) -> list[str]:
        """What does not fit; empty where everything does."""
        phases = [*self.phases, *([self.server] if self.server else [])]
        found = [
            f"{phase.name}: {gib(phase.size)} of {gib(self.room)} ("
            + ", ".join(f"{part.name} {gib(part.size)}" for part in phase.parts)
            + ")"
            for phase in phases
            if phase.size > self.room
        ]
        if self.conversations == 0:
            found.append(
                "vLLM's share of memory does not hold one conversation of the longest kind"
            )
        return found


def estimate_step(
    step: str, settings: SftSettings | HdpoSettings, shape: ModelShape, there: float | None = None
) -> Estimate:
    """What a training step needs.

    Args:
        step: `train-sft` or `train-hdpo`.
        settings: its section of the profile.
        shape: of the model it starts from.
        there: bytes of a GPU, where that was looked up; otherwise what its kind is sold with. Of
            this machine, where it has no hardware of its own.
    """
    hardware = settings.hardware
    if hardware is None:
        there = available_memory() if there is None else there
        return Estimate(
            step,
            settings,
            shape,
            f"this machine, {settings.processes} process" + "es" * (settings.processes > 1),
            there,
            there / settings.processes,
            tuple(_phases_here(settings, shape)),
        )
    sold = GPUS[hardware.gpu].memory
    nodes = f"{hardware.nodes} × " if hardware.nodes > 1 else ""
    place = f"{nodes}{settings.processes} × {hardware.gpu}"
    load = Load.of(shape, settings, rows_at_once(settings), hardware.context_tokens)
    phases = [Phase("update", tuple(load.update))]
    server, conversations = None, None
    if isinstance(settings, HdpoSettings):
        vllm = _vllm(shape, settings)
        conversations = int(cached_conversations(shape, settings, hardware.context_tokens))
        if hardware.vllm == "server":
            place += f" + {hardware.vllm_gpus} for vLLM"
            server = Phase("vLLM's own GPUs", (vllm,))
        else:
            phases.append(Phase("rollouts", (*load.resting, vllm)))
    return Estimate(
        step,
        settings,
        shape,
        place,
        there,
        HEADROOM * min(sold, sold if there is None else there),
        tuple(phases),
        server,
        conversations,
        duration(shape, settings),
        duration(shape, settings, 1.0),
    )


def estimate_profile(profile: Profile) -> list[Estimate]:
    """What the training steps of a profile need; both start from a model of the base's shape.

    Raises:
        InputError: the base model's shape cannot be told.
        BackendError: its endpoint failed for good.
    """
    shape = _base_shape(profile)
    return [
        estimate_step("train-sft", profile.sft, shape),
        estimate_step("train-hdpo", profile.hdpo, shape),
    ]


def check(estimate: Estimate) -> None:
    """Refuse what cannot fit.

    Raises:
        InputError: with the numbers, and with changes that would make it fit.
    """
    if not estimate.faults:
        return
    changes = list(_changes(estimate.settings))
    for together in (1, 2):
        cures = [
            " and ".join(change.words for change in chosen)
            for chosen in combinations(changes, together)
            if not _with(estimate, chosen).faults
        ]
        if cures:
            break
    advice = "; or ".join(cures[:4]) if cures else "a smaller model, or more GPUs"
    raise InputError(
        f"{estimate.step} does not fit on {estimate.place}: {'; '.join(estimate.faults)}.\n"
        f"What would fit: {advice}"
    )


def rows_at_once(settings: SftSettings | HdpoSettings) -> int:
    """Conversations of one forward pass of a process."""
    rows = (
        settings.prompts_per_step * settings.num_generations
        if isinstance(settings, HdpoSettings)
        else settings.batch_size
    )
    return max(1, -(-rows // (processes(settings) * settings.accumulate)))


def available_memory() -> float:
    """Bytes of memory this machine can still give, by the kernel's reckoning."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return float(fields["MemAvailable"].split()[0]) * 1024


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _phases_here(settings: SftSettings | HdpoSettings, shape: ModelShape) -> Iterator[Phase]:
    """Without GPUs memory is soft: planned for usual conversations, not for the longest."""
    tokens = int(shape.text_config.max_position_embeddings * EXPECTED)
    load = Load.of(shape, settings, rows_at_once(settings), tokens)
    yield Phase("update", tuple(load.update))
    if isinstance(settings, HdpoSettings):
        rows = settings.prompts_per_step * settings.num_generations // settings.processes
        cache = shape.cache_bytes(FLOAT)
        how = f"{rows} × {tokens:,} tokens × {cache / 1024:,.0f} KiB"
        yield Phase("rollouts", (*load.resting, Part("KV cache", rows * tokens * cache, how)))


def _vllm(shape: ModelShape, settings: HdpoSettings) -> Part:
    hardware = settings.hardware
    assert hardware is not None
    size = hardware.vllm_memory * GPUS[hardware.gpu].memory
    weights = shape.parameters * HALF / hardware.vllm_gpus
    how = (
        f"{hardware.vllm_memory:g} of the GPU: weights {gib(weights)}, KV cache "
        f"{gib(size - weights - OVERHEAD)} at {shape.cache_bytes() / 1024:,.0f} KiB a token"
    )
    return Part("vLLM", size, how)


def _base_shape(profile: Profile) -> ModelShape:
    if profile.base.checkpoint:
        return shape_of(profile.base.checkpoint)
    from toolwise.synthetic.environment import PHRASES
    from toolwise.synthetic.model import build_model, build_processor
    from toolwise.tools.python import PYTHON_SCHEMA
    from toolwise.tools.text_search import TEXT_SEARCH_SCHEMA

    processor = build_processor((PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA), PHRASES)
    model = build_model(processor.tokenizer)
    return ModelShape.model_validate(model.config.to_dict())


class _Change(NamedTuple):
    """A change of settings that needs less memory, in words and in values."""

    words: str
    step: dict[str, Any]
    hardware: dict[str, Any]


def _changes(settings: SftSettings | HdpoSettings) -> Iterator[_Change]:
    section = "hdpo" if isinstance(settings, HdpoSettings) else "sft"
    rows = rows_at_once(settings)
    for smaller in (rows // 2, rows // 4, rows // 8, 1):
        if 0 < smaller < rows and rows % smaller == 0:
            accumulate = settings.accumulate * rows // smaller
            yield _Change(f"{section}.accumulate: {accumulate}", {"accumulate": accumulate}, {})
    if settings.lora is None:
        yield _Change(f"{section}.lora: {{}}", {"lora": LoraSettings()}, {})
    hardware = settings.hardware
    if hardware is None:
        return
    for more in (2, 4, 8):
        if settings.processes < more:
            yield _Change(f"{section}.processes: {more}", {"processes": more}, {})
    for tokens in (16_384, 8_192, 4_096):
        if tokens < hardware.context_tokens:
            yield _Change(f"hardware.context_tokens: {tokens}", {}, {"context_tokens": tokens})
    if section == "hdpo":
        for share in (0.3, 0.4, 0.6, 0.7, 0.8):
            yield _Change(f"hardware.vllm_memory: {share}", {}, {"vllm_memory": share})
        if hardware.vllm == "colocated":
            server = {"vllm": "server", "vllm_memory": 0.9}
            yield _Change("hardware.vllm: server with vllm_memory: 0.9", {}, server)
    more = 2 * hardware.nodes
    yield _Change(f"hardware.nodes: {more}", {}, {"nodes": more})


def _with(estimate: Estimate, changes: Sequence[_Change]) -> Estimate:
    settings, hardware = estimate.settings, estimate.settings.hardware
    for change in changes:
        settings = settings.model_copy(update=change.step)
        if hardware is not None:
            hardware = hardware.model_copy(update=change.hardware)
    settings = settings.model_copy(update={"hardware": hardware})
    return estimate_step(estimate.step, settings, estimate.shape, estimate.there)
