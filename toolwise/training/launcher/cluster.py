"""The cluster a training step may send its work to, as the pipeline tells the step's pod."""

from __future__ import annotations

import os
from typing import Self

from pydantic import BaseModel, ConfigDict

from toolwise.kubernetes.toleration import Toleration

CLUSTER_VARIABLE = "TOOLWISE_CLUSTER"
"""Environment variable of a training step's pod: a `Cluster` as JSON."""


class Cluster(BaseModel):
    """What a `TrainJob` and the vLLM server beside it are made of.

    Args:
        image: of the training's containers.
        exchange: `s3://…` prefix for the inputs and the checkpoint.
        accelerator: resource name of the GPUs.
        cpu, memory: limits of a node of the training, and of the vLLM server.
        secret: Kubernetes secret with `secret_keys`.
        secret_keys: environment variables taken from it.
        image_pull_secret: Kubernetes secret that pulls the images, where the registry asks for one.
        node_selector, tolerations: labels and taints of the nodes both run on.
        vllm_image: of the vLLM server.
        sandbox: server that runs the model's code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    exchange: str
    accelerator: str
    cpu: str
    memory: str
    secret: str
    secret_keys: tuple[str, ...]
    image_pull_secret: str | None = None
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    vllm_image: str | None = None
    sandbox: str | None = None

    @classmethod
    def of_environment(cls) -> Self | None:
        """The cluster this process is told of; None where it does its work itself."""
        text = os.environ.get(CLUSTER_VARIABLE)
        return cls.model_validate_json(text) if text else None
