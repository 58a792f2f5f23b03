"""Which engine makes the rollouts: transformers in this process, or vLLM where there are GPUs."""

from __future__ import annotations

import os
from typing import Any

from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.agent.vllm_engine import VLLMEngine
from toolwise.agent.vllm_server import VLLMServer
from toolwise.errors import InputError
from toolwise.training.hardware import HardwareSettings
from toolwise.training.hdpo.agent import TokenEngine
from toolwise.training.hdpo.colocated import ColocatedVLLM


def vllm_arguments(hardware: HardwareSettings | None) -> dict[str, Any]:
    """What TRL needs to know to keep vLLM's weights those of the policy; nothing without GPUs.

    Raises:
        InputError: the profile asks for what the agent loop cannot use, or no server was started.
    """
    if hardware is None:
        return {}
    if hardware.vllm == "server":
        return {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": _server_address(),
        }
    if hardware.vllm_gpus > 1:
        raise InputError(
            f"hardware.vllm_gpus is {hardware.vllm_gpus}: a copy of the model that is spread over "
            "several trainers has to sample for all of them at once, and their rollouts take "
            "different numbers of turns. Set hardware.vllm to server, or vllm_gpus to 1"
        )
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": hardware.vllm_memory,
        "vllm_max_model_length": hardware.context_tokens,
        "vllm_enable_sleep_mode": True,
    }


def rollout_engine(
    trainer: Any, model: Any, processor: Any, hardware: HardwareSettings | None
) -> TokenEngine:
    """The engine that samples from the trainer's policy.

    Args:
        trainer: made with `vllm_arguments`.
        model: the policy; adapters that the trainer put into it are in it.
        processor: the policy's.
        hardware: as the profile has it.
    """
    if hardware is None:
        return TransformersEngine(model, processor)
    if hardware.vllm == "server":
        return VLLMEngine(VLLMServer(_server_address()), processor)
    return VLLMEngine(ColocatedVLLM(trainer.vllm_generation), processor)


def _server_address() -> str:
    from toolwise.training.launcher.trainjob import SERVER_VARIABLE

    address = os.environ.get(SERVER_VARIABLE)
    if not address:
        raise InputError(
            f"hardware.vllm is server, and {SERVER_VARIABLE} does not say where: set it to the "
            "address of a vLLM server, or submit the profile to a cluster, which starts one"
        )
    return address
