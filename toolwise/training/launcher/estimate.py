"""What the training steps of a profile need, and whether it is there, before they start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from toolwise.errors import InputError
from toolwise.training.hardware import GPUS
from toolwise.training.launcher.duration import (
    EXPECTED,
    OVERHEAD,
    Duration,
    cached_conversations,
    duration,
)
from toolwise.training.launcher.machine import available_memory
from toolwise.training.launcher.memory import HALF, Load, Part, rows_at_once, total
from toolwise.training.launcher.shape import ModelShape, shape_of
from toolwise.training.settings import HdpoSettings, LoraSettings, SftSettings

if TYPE_CHECKING:
    from toolwise.profile import Profile

HEADROOM = 0.92
"""Share of memory that is planned with: the rest goes to fragments and the runtime."""

MAIN_SETTING = "kubeflow.memory"
"""The setting of the main memory of pods."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a training step, what it holds in memory at its peak, and the room for it."""

    name: str
    parts: tuple[Part, ...]
    room: float

    @property
    def size(self) -> float:
        """Bytes in all."""
        return total(list(self.parts))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one training step needs of each GPU and node, or of this machine for each process.

    Args:
        step: its name.
        settings: its section of the profile.
        shape: of the model it starts from.
        place: what it runs on, in words.
        gpu: bytes of a GPU, where they were looked up.
        main: bytes of main memory of a node, or of this machine; None where they are not known.
        data: bytes of the data the step is given; 0 where they are not known.
        phases: what happens by turns on a GPU, or on this machine.
        host: what happens by turns in the main memory of a node with GPUs.
        server: what vLLM's GPUs hold, where it has some of its own.
        conversations: of the longest kind that one copy of vLLM can hold; None without vLLM.
        usual: how long it takes with conversations of the usual length; None without GPUs.
        longest: how long with conversations that all are the longest.
        main_setting: of the profile, that sets main memory; empty where none does.
    """

    step: str
    settings: SftSettings | HdpoSettings
    shape: ModelShape
    place: str
    gpu: float | None
    main: float | None
    data: float
    phases: tuple[Phase, ...]
    host: tuple[Phase, ...] = ()
    server: Phase | None = None
    conversations: int | None = None
    usual: Duration | None = None
    longest: Duration | None = None
    main_setting: str = ""

    @property
    def faults(self) -> list[str]:
        """What does not fit; empty where everything does."""
        phases = [*self.phases, *([self.server] if self.server else []), *self.host]
        found = [
            f"{phase.name}: {gib(phase.size)} of {gib(phase.room)} ("
            + ", ".join(f"{part.name} {gib(part.size)}" for part in phase.parts)
            + ")"
            for phase in phases
            if phase.size > phase.room
        ]
        if self.conversations == 0:
            found.append(
                "vLLM's share of memory does not hold one conversation of the longest kind"
            )
        return found


def estimate_step(
    step: str,
    settings: SftSettings | HdpoSettings,
    shape: ModelShape,
    *,
    gpu: float | None = None,
    main: float | None = None,
    data: float = 0.0,
    main_setting: str = "",
) -> Estimate:
    """What a training step needs.

    Args:
        step: `train-sft` or `train-hdpo`.
        settings: its section of the profile.
        shape: of the model it starts from.
        gpu: bytes of a trainer's GPU, where that was looked up; otherwise what its kind is sold
            with.
        main: bytes of main memory of a node, which is not checked where it is not given; of this
            machine, looked up where it is not given, without `hardware`.
        data: bytes of the data set, where it is at hand.
        main_setting: setting of the profile by which main memory grows; empty where it is what the
            machine has.

    Raises:
        InputError: the batch does not divide, or conversations are longer than the model's context.
    """
    rows = rows_at_once(settings)
    hardware = settings.hardware
    if hardware is None:
        main = available_memory() if main is None else main
        place = f"this machine, {settings.processes} process" + "es" * (settings.processes > 1)
        phases = tuple(_phases_here(settings, shape, rows, main / settings.processes))
        return Estimate(step, settings, shape, place, gpu, main, data, phases)
    context = shape.text_config.max_position_embeddings
    if hardware.context_tokens > context:
        raise InputError(
            f"hardware.context_tokens is {hardware.context_tokens:,}, and the model reads at most "
            f"{context:,} tokens: lower it to that or less"
        )
    sold = GPUS[hardware.gpu].memory
    room = HEADROOM * min(sold, sold if gpu is None else gpu)
    nodes = f"{hardware.nodes} × " if hardware.nodes > 1 else ""
    place = f"{nodes}{settings.processes} × {hardware.gpu}"
    load = Load.of(shape, settings, rows, hardware.context_tokens)
    phases = [Phase("update", tuple(load.update), room)]
    server, conversations = None, None
    if isinstance(settings, HdpoSettings):
        vllm = _vllm(shape, settings)
        conversations = int(cached_conversations(shape, settings, hardware.context_tokens))
        if hardware.vllm == "server":
            place += f" + {hardware.vllm_gpus} for vLLM"
            server = Phase("vLLM's own GPUs", (vllm,), HEADROOM * sold)
        else:
            phases.append(Phase("rollouts", (*load.resting, vllm), room))
    host = () if main is None else _phases_of_host(load, settings.processes, data, HEADROOM * main)
    return Estimate(
        step,
        settings,
        shape,
        place,
        gpu,
        main,
        data,
        tuple(phases),
        host,
        server,
        conversations,
        duration(shape, settings),
        duration(shape, settings, 1.0),
        main_setting,
    )


def estimate_profile(profile: Profile) -> list[Estimate]:
    """What the training steps of a profile need; both start from a model of the base's shape.

    Raises:
        InputError: the base model's shape cannot be told, a batch does not divide, or
            conversations are longer than the model's context.
        BackendError: its endpoint failed for good.
    """
    shape = _base_shape(profile)
    kubeflow = profile.kubeflow
    main = memory_quantity(kubeflow.memory) if kubeflow else available_memory()
    of = MAIN_SETTING if kubeflow else ""
    return [
        estimate_step("train-sft", profile.sft, shape, main=main, main_setting=of),
        estimate_step("train-hdpo", profile.hdpo, shape, main=main, main_setting=of),
    ]


def memory_quantity(text: str) -> float:
    """Bytes of a memory limit as Kubernetes writes it; the profile has checked its form."""
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))


def check(estimate: Estimate) -> None:
    """Refuse what cannot fit.

    Raises:
        InputError: with the numbers, and with changes that would make it fit.
    """
    if not estimate.faults:
        return
    changes = list(_changes(estimate))
    for together in (1, 2):
        cures = [
            " and ".join(change.words for change in chosen)
            for chosen in combinations(changes, together)
            if _cured(estimate, chosen)
        ]
        if cures:
            break
    advice = "; or ".join(cures[:4]) if cures else "a smaller model, or more GPUs"
    raise InputError(
        f"{estimate.step} does not fit on {estimate.place}: {'; '.join(estimate.faults)}.\n"
        f"What would fit: {advice}"
    )


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _phases_here(
    settings: SftSettings | HdpoSettings, shape: ModelShape, rows: int, room: float
) -> Iterator[Phase]:
    """Without GPUs memory is soft: planned for usual conversations, not for the longest."""
    tokens = int(shape.text_config.max_position_embeddings * EXPECTED)
    load = Load.of(shape, settings, rows, tokens)
    yield Phase("update", tuple(load.update), room)
    if isinstance(settings, HdpoSettings):
        rollouts = settings.prompts_per_step * settings.num_generations // settings.processes
        yield Phase("rollouts", (*load.resting, load.cache(rollouts)), room)


def _phases_of_host(load: Load, processes: int, data: float, room: float) -> tuple[Phase, ...]:
    """What the processes of a node with GPUs hold in its main memory."""
    always = load.processes_on_host(processes, data)
    return (
        Phase("loading the model", (load.loaded(processes), *always), room),
        Phase("writing or reading a checkpoint", (load.gathered_moments(), *always), room),
    )


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


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of settings or machines by which a step may fit, in words and in values."""

    words: str
    step: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    main: float | None = None


def _changes(estimate: Estimate) -> Iterator[_Change]:
    settings = estimate.settings
    section = "hdpo" if isinstance(settings, HdpoSettings) else "sft"
    rows = rows_at_once(settings)
    for smaller in (rows // 2, rows // 4, rows // 8, 1):
        if 0 < smaller < rows and rows % smaller == 0:
            accumulate = settings.accumulate * rows // smaller
            yield _Change(f"{section}.accumulate: {accumulate}", {"accumulate": accumulate})
    if settings.lora is None:
        alone = " with keep_checkpoints: 1" if settings.keep_checkpoints > 1 else ""
        adapters = {"lora": LoraSettings(), "keep_checkpoints": 1}
        yield _Change(f"{section}.lora: {{}}{alone}", adapters)
    hardware = settings.hardware
    if hardware is None:
        return
    for more in (2, 4, 8):
        if settings.processes < more:
            yield _Change(f"{section}.processes: {more}", {"processes": more})
    for tokens in (16_384, 8_192, 4_096):
        if tokens < hardware.context_tokens:
            yield _Change(f"hardware.context_tokens: {tokens}", hardware={"context_tokens": tokens})
    if section == "hdpo":
        for share in (0.3, 0.4, 0.6, 0.7, 0.8):
            yield _Change(f"hardware.vllm_memory: {share}", hardware={"vllm_memory": share})
        if hardware.vllm == "colocated":
            server = {"vllm": "server", "vllm_memory": 0.9}
            yield _Change("hardware.vllm: server with vllm_memory: 0.9", hardware=server)
    more = 2 * hardware.nodes
    yield _Change(f"hardware.nodes: {more}", hardware={"nodes": more})
    setting = f" ({estimate.main_setting})" if estimate.main_setting else ""
    for size in (64, 128, 256, 512, 1024, 2048):
        if estimate.main is not None and size << 30 > estimate.main:
            yield _Change(f"{size}Gi of main memory{setting}", main=float(size << 30))


def _cured(estimate: Estimate, changes: Sequence[_Change]) -> bool:
    """Whether the step fits with these changes, and its batch still divides."""
    try:
        return not _with(estimate, changes).faults
    except InputError:
        return False


def _with(estimate: Estimate, changes: Sequence[_Change]) -> Estimate:
    settings, hardware, main = estimate.settings, estimate.settings.hardware, estimate.main
    for change in changes:
        main = change.main or main
        settings = settings.model_copy(update=change.step)
        if hardware is not None:
            hardware = hardware.model_copy(update=change.hardware)
    settings = settings.model_copy(update={"hardware": hardware})
    return estimate_step(
        estimate.step, settings, estimate.shape, gpu=estimate.gpu, main=main, data=estimate.data
    )
