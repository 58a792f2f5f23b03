"""What training needs is told before it starts: counted exactly, estimated within a factor."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from toy_training import write_base
from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from toolwise.errors import InputError
from toolwise.steps.fitting import needs
from toolwise.steps.running import Step
from toolwise.training.hardware import GPUS, HardwareSettings
from toolwise.training.launcher import machine
from toolwise.training.launcher.duration import cached_conversations, duration
from toolwise.training.launcher.estimate import check, estimate_step
from toolwise.training.launcher.machine import available_memory
from toolwise.training.launcher.memory import Load, total
from toolwise.training.launcher.shape import shape_of
from toolwise.training.policy import ADAPTED
from toolwise.training.resuming import per_device
from toolwise.training.settings import HdpoSettings, LoraSettings, SftSettings

GIB = 2**30
WITHIN = 1.5
"""An estimate of memory is right within this factor, either way."""

PEAK = Path(__file__).parents[1] / "integration" / "training_peak.py"

PUBLISHED = {"Qwen3-VL-2B-Instruct": 2_127_532_032, "Qwen3-VL-8B-Instruct": 8_767_123_696}
"""Elements of the published checkpoints, as the model hub counts them."""

HARDWARE = HardwareSettings(gpu="h100-80gb", context_tokens=16_384)


def on_meta(name: str) -> Qwen3VLForConditionalGeneration:
    file = resources.files("toolwise.training.launcher") / "configs" / f"{name}.json"
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**json.loads(file.read_text())))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models_are_counted_exactly(name: str) -> None:
    shape = shape_of(f"hf://Qwen/{name}")
    model = on_meta(name)
    assert shape.parameters == PUBLISHED[name] == model.num_parameters()
    assert shape.vision_config.parameters == model.model.visual.num_parameters()


def test_parameters_of_the_tiny_model_are_counted_exactly(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    model = AutoModelForImageTextToText.from_pretrained(base)
    assert shape_of(base).parameters == model.num_parameters()


def test_parameters_of_adapters_are_counted_exactly() -> None:
    model = get_peft_model(
        on_meta("Qwen3-VL-2B-Instruct"),  # type: ignore[arg-type]
        LoraConfig(r=16, target_modules=ADAPTED),
    )
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_of("hf://Qwen/Qwen3-VL-2B-Instruct").lora_parameters(16) == counted


def test_sharded_weights_moments_and_gradients_are_sixteen_bytes_over_the_gpus() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    settings = SftSettings(processes=8, batch_size=8, hardware=HARDWARE)
    parts = {part.name: part.size for part in Load.of(shape, settings, 1, 1024).update}
    states = parts["weights"] + parts["optimiser"] + parts["gradients"]
    assert states == pytest.approx(16 * 8_767_123_696 / 8)


def test_adapters_leave_frozen_weights_in_two_bytes_and_no_moments_for_them() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-2B-Instruct")
    settings = SftSettings(lora=LoraSettings(rank=16), hardware=HARDWARE)
    adapters = shape.lora_parameters(16)
    weights, moments = Load.of(shape, settings, 1, 1024).resting
    assert weights.size == 2 * 2_127_532_032 + 4 * adapters
    assert moments.size == 8 * adapters


def test_a_token_of_the_8b_model_takes_144_kib_of_cache() -> None:
    # 2 (keys, values) × 36 layers × 8 heads × 128 × 2 bytes
    assert shape_of("hf://Qwen/Qwen3-VL-8B-Instruct").cache_bytes() == 147_456


def test_vllm_holds_what_is_left_of_its_share_after_the_weights() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    settings = HdpoSettings(hardware=HARDWARE.model_copy(update={"vllm_memory": 0.5}))
    # 0.5 · 79 GiB − 2 GiB − 2 · 8.767 G bytes, over 16,384 tokens of 144 KiB (2.25 GiB)
    left = 39.5 - 2 - 2 * 8_767_123_696 / GIB
    assert cached_conversations(shape, settings, 16_384) == pytest.approx(left / 2.25)


def test_recomputing_keeps_a_layers_input_only() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    settings = SftSettings(processes=8, freeze_vision=True, hardware=HARDWARE)
    one, two = (
        {p.name: p.size for p in Load.of(shape, settings, rows, 1000).update}["activations"]
        for rows in (1, 2)
    )
    assert two == 2 * one
    # 36 layers × 4,096 × 2 bytes are kept, and one layer is worked on: far less than 36 whole ones
    assert 1000 * 36 * 4096 * 2 < one < 3 * 1000 * 36 * 4096 * 2


def test_the_peak_of_a_real_training_step_is_within_the_factor() -> None:
    run = subprocess.run(
        [sys.executable, str(PEAK), "32", "160"],
        capture_output=True,
        text=True,
        check=True,
    )
    measured, estimated = json.loads(run.stdout.splitlines()[-1])
    assert measured / WITHIN < estimated < measured * WITHIN


def test_an_update_takes_four_passes_over_the_weights_and_adapters_three() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-2B-Instruct")
    settings = SftSettings(steps=10, batch_size=4, hardware=HARDWARE)
    full = duration(shape, settings, 0.5)
    # 4 rows × 8,192 tokens × 4 passes × (2 · 2.1275 G + 2 · 28 layers · 2,048 · 8,192 operations)
    work = 4 * 8192 * 4 * (2 * 2_127_532_032 + 2 * 28 * 2048 * 8192)
    assert full.update == pytest.approx(work / (989e12 * 0.35))
    assert full.gpu_hours == pytest.approx(10 * full.update / 3600)
    adapters = settings.model_copy(update={"lora": LoraSettings()})
    assert duration(shape, adapters, 0.5).update == pytest.approx(full.update * 3 / 4)
    # What vLLM has sampled, here 2 × 2 rollouts, the trainer scores once more.
    hdpo = HdpoSettings(steps=10, prompts_per_step=2, num_generations=2, hardware=HARDWARE)
    assert duration(shape, hdpo, 0.5).update == pytest.approx(full.update * 5 / 4)


def test_rollouts_take_longer_the_longer_they_are_and_the_fewer_run_at_once() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    settings = HdpoSettings(processes=8, prompts_per_step=128, num_generations=16)

    def rollouts(share: float, **hardware: object) -> float:
        changed = HARDWARE.model_copy(update=hardware)
        return duration(shape, settings.model_copy(update={"hardware": changed}), share).rollouts

    assert rollouts(0.25) < rollouts(0.5) < rollouts(1.0)
    assert rollouts(1.0, vllm_memory=0.4) > rollouts(1.0, vllm_memory=0.7)


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_would_fit() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    settings = HdpoSettings(
        processes=8, prompts_per_step=128, num_generations=16, accumulate=16, hardware=HARDWARE
    )
    estimate = estimate_step("train-hdpo", settings, shape)
    with pytest.raises(InputError) as caught:
        check(estimate)
    message = str(caught.value)
    assert "train-hdpo does not fit on 8 × h100-80gb: update:" in message
    assert f"of {0.92 * 79:.1f} GiB" in message
    assert "activations" in message
    cure = settings.model_copy(update={"accumulate": 256})
    assert "hdpo.accumulate: 256" in message
    check(estimate_step("train-hdpo", cure, shape))


def test_two_changes_are_named_where_one_is_not_enough() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    small = HARDWARE.model_copy(update={"gpu": "l40s-48gb", "context_tokens": 32_768})
    settings = HdpoSettings(processes=4, prompts_per_step=16, accumulate=8, hardware=small)
    with pytest.raises(InputError, match=r"What would fit: .+ and .+"):
        check(estimate_step("train-hdpo", settings, shape))


def test_a_share_of_memory_without_room_for_one_conversation_is_refused() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    tight = HARDWARE.model_copy(update={"vllm_memory": 0.25})
    settings = HdpoSettings(processes=8, accumulate=24, hardware=tight)
    with pytest.raises(InputError, match="does not hold one conversation"):
        check(estimate_step("train-hdpo", settings, shape))


def test_a_smaller_gpu_than_the_profile_says_counts() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-2B-Instruct")
    settings = SftSettings(batch_size=1, lora=LoraSettings(), hardware=HARDWARE)
    check(estimate_step("train-sft", settings, shape))
    with pytest.raises(InputError, match="does not fit"):
        check(estimate_step("train-sft", settings, shape, gpu=8 * GIB))


def test_vllms_own_gpus_are_not_those_whose_free_memory_was_looked_up() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-2B-Instruct")
    server = HARDWARE.model_copy(update={"vllm": "server", "vllm_memory": 0.9})
    settings = HdpoSettings(prompts_per_step=1, accumulate=8, lora=LoraSettings(), hardware=server)
    check(estimate_step("train-hdpo", settings, shape, gpu=40 * GIB))


def test_memory_of_this_machine_is_shared_by_its_processes() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-2B-Instruct")
    settings = SftSettings(batch_size=2, processes=2)
    estimate = estimate_step("train-sft", settings, shape, main=64 * GIB)
    assert {phase.room for phase in estimate.phases} == {32 * GIB}
    assert total(list(estimate.phases[0].parts)) > 16 * 2_127_532_032
    assert estimate.faults


def hosted(
    settings: SftSettings, model: str = "Qwen3-VL-8B-Instruct", data: float = 0.0
) -> dict[str, dict[str, float]]:
    """Parts of each phase in the main memory of a node, in bytes."""
    shape = shape_of(f"hf://Qwen/{model}")
    estimate = estimate_step("train-sft", settings, shape, main=1024 * GIB, data=data)
    return {phase.name: {p.name: p.size for p in phase.parts} for phase in estimate.host}


def test_a_node_reads_sharded_weights_once_and_gathers_the_moments() -> None:
    settings = SftSettings(processes=8, batch_size=64, accumulate=8, hardware=HARDWARE)
    phases = hosted(settings, data=5 * GIB)
    loading, checkpoint = phases.values()
    assert loading["weights"] == 4 * 8_767_123_696
    assert checkpoint["optimiser"] == 8 * 8_767_123_696
    # 16,384 tokens, a quarter of them images' · 4 patches a token · 3 · 2 · 16² values · 4 bytes
    pixels = 16_384 * 3 * 2 * 16 * 16 * 4
    assert loading["data"] == checkpoint["data"] == 8 * (5 * GIB + pixels)
    assert loading["runtime"] == 8 * 4 * GIB


def test_each_process_reads_weights_that_are_not_sharded() -> None:
    lora = LoraSettings(rank=16)
    settings = SftSettings(processes=4, batch_size=4, lora=lora, hardware=HARDWARE)
    loading, checkpoint = hosted(settings, "Qwen3-VL-2B-Instruct").values()
    assert loading["weights"] == 4 * 2 * 2_127_532_032
    shape = shape_of("hf://Qwen/Qwen3-VL-2B-Instruct")
    assert checkpoint["optimiser"] == 8 * shape.lora_parameters(16)


def test_a_node_without_the_main_memory_to_load_the_model_is_refused_with_what_is_enough() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    settings = SftSettings(processes=8, batch_size=64, accumulate=8, hardware=HARDWARE)
    with pytest.raises(InputError) as caught:
        check(estimate_step("train-sft", settings, shape, main=32 * GIB))
    assert "loading the model: 65." in str(caught.value)
    assert f"of {0.92 * 32:.1f} GiB (weights 32.7 GiB, runtime 32.0 GiB" in str(caught.value)
    assert "What would fit: 128Gi of main memory; or" in str(caught.value)
    check(estimate_step("train-sft", settings, shape, main=128 * GIB))
    with pytest.raises(InputError, match=r"128Gi of main memory \(kubeflow.memory\)"):
        check(
            estimate_step(
                "train-sft", settings, shape, main=32 * GIB, main_setting="kubeflow.memory"
            )
        )


def test_adapters_are_offered_as_the_profile_takes_them() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-2B-Instruct")
    settings = SftSettings(batch_size=1, hardware=HARDWARE)
    for keep, told in ((1, r"sft.lora: \{\}(;|$)"), (2, r"lora: \{\} with keep_checkpoints: 1")):
        kept = settings.model_copy(update={"keep_checkpoints": keep})
        with pytest.raises(InputError, match=told):
            check(estimate_step("train-sft", kept, shape, gpu=24 * GIB))


@pytest.mark.parametrize("kubernetes", [False, True])
def test_the_data_is_what_training_reads_and_only_pods_have_a_setting_for_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kubernetes: bool
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    if not kubernetes:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    curated = tmp_path / "curated"
    curated.mkdir()
    for name, size in (("curated", 3), ("rejected", 5), ("waiting", 7)):
        (curated / f"{name}.parquet").write_bytes(bytes(size))
    inputs = {"model": write_base(tmp_path / "base"), "curated": curated}
    nobody: Any = None
    hardware = HARDWARE.model_copy(update={"context_tokens": 512})
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    text = SftSettings(hardware=hardware).model_dump_json()
    estimate = needs(Step("train-sft", text, 0, inputs, tmp_path, nobody, nobody))
    assert estimate.data == 3
    assert estimate.main_setting == ("kubeflow.memory" if kubernetes else "")


@pytest.mark.parametrize(
    ("accumulate", "told"),
    [
        (
            255,
            "2,048 does not divide into 8 processes × 255 parts .*accumulate to 64 or 128 or 256",
        ),
        (1000, "set hdpo.accumulate to 64 or 128 or 256"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_what_would(
    accumulate: int, told: str
) -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    settings = HdpoSettings(
        processes=8, prompts_per_step=128, num_generations=16, accumulate=accumulate
    )
    with pytest.raises(InputError, match=told):
        estimate_step("train-hdpo", settings, shape)
    for parts in (64, 128, 256):
        estimate_step("train-hdpo", settings.model_copy(update={"accumulate": parts}), shape)


def test_a_batch_smaller_than_its_processes_is_refused_with_a_size_that_would_do() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    with pytest.raises(InputError, match=r"sft.batch_size to a multiple of 6"):
        estimate_step("train-sft", SftSettings(processes=3, batch_size=4, accumulate=2), shape)
    estimate_step("train-sft", SftSettings(processes=3, batch_size=6, accumulate=2), shape)


def test_the_base_stages_batch_is_named_as_the_profile_does(monkeypatch) -> None:
    group = SimpleNamespace(num_processes=3)
    monkeypatch.setattr("toolwise.training.resuming.PartialState", lambda: group)
    with pytest.raises(InputError, match=r"set base\.train\.batch_size to a multiple of 3"):
        per_device(4)


def test_conversations_longer_than_the_model_reads_are_refused_with_its_number() -> None:
    shape = shape_of("hf://Qwen/Qwen3-VL-8B-Instruct")
    at_most = HARDWARE.model_copy(update={"context_tokens": 262_144})
    estimate_step("train-sft", SftSettings(hardware=at_most), shape)
    longer = HARDWARE.model_copy(update={"context_tokens": 262_145})
    with pytest.raises(InputError, match=r"context_tokens is 262,145, and .* at most 262,144"):
        estimate_step("train-sft", SftSettings(hardware=longer), shape)


def test_a_containers_limit_counts_where_it_is_below_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text(f"anon {3 * GIB}\nfile {4 * GIB}\n")
    (tmp_path / "memory.max").write_text(f"{3 * GIB + 1000}\n")
    assert available_memory(tmp_path) == 1000
    for unlimited in ("max", str(2**60)):
        (tmp_path / "memory.max").write_text(f"{unlimited}\n")
        assert available_memory(tmp_path) == pytest.approx(
            available_memory(tmp_path / "none"), rel=0.2
        )


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed for the arithmetic on what a look at them returns."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(machine, "free_gpu_memory", lambda: [78 * GIB, 30 * GIB, 2 * GIB])


@pytest.mark.usefixtures("three_gpus")
def test_the_fullest_gpu_that_is_used_is_the_one_that_counts() -> None:
    assert machine.gpu_memory(SftSettings(processes=2, hardware=HARDWARE)) == 30 * GIB
    with pytest.raises(InputError, match="trains on 4 × h100-80gb and this machine has 3 GPUs"):
        machine.gpu_memory(SftSettings(processes=4, hardware=HARDWARE))


@pytest.mark.usefixtures("three_gpus")
def test_gpus_are_not_looked_for_where_training_is_to_run_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert machine.gpu_memory(SftSettings(processes=4, hardware=HARDWARE)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_a_machine_without_gpus_has_none_with_free_memory() -> None:
    assert machine.free_gpu_memory() == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"model_type": "llama"}', "no Qwen3-VL model's: text_config: field required"),
        ("{", "not valid JSON"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=told):
        shape_of(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        shape_of(tmp_path)


def test_gpus_leave_less_than_they_are_sold_with() -> None:
    for name, gpu in GPUS.items():
        sold = int(name.rpartition("-")[2].removesuffix("gb"))
        assert 0.9 * sold < gpu.memory / GIB < sold
