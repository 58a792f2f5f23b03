"""Whether what a training step needs is there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from toolwise.steps.running import Step
from toolwise.training.settings import HdpoSettings, SftSettings

if TYPE_CHECKING:
    from toolwise.training.launcher.cluster import Cluster
    from toolwise.training.launcher.estimate import Estimate

SETTINGS: dict[str, type[SftSettings] | type[HdpoSettings]] = {
    "train-sft": SftSettings,
    "train-hdpo": HdpoSettings,
}
"""The training steps, and the settings of each."""


def needs(step: Step, cluster: Cluster | None = None) -> Estimate:
    """What a training step needs, beside what this machine has, or what a cluster's nodes have.

    Raises:
        InputError: the step cannot be run with these settings, or there are too few GPUs here.
    """
    from toolwise.training.launcher.estimate import MAIN_SETTING, estimate_step, memory_quantity
    from toolwise.training.launcher.machine import available_memory, gpu_memory
    from toolwise.training.launcher.shape import shape_of

    settings = step.settings_as(SETTINGS[step.label])
    data = step.path("curated") / "curated.parquet"
    in_pod = cluster is not None or "KUBERNETES_SERVICE_HOST" in os.environ
    return estimate_step(
        step.label,
        settings,
        shape_of(step.path("model")),
        gpu=None if cluster or settings.hardware is None else gpu_memory(settings),
        main=memory_quantity(cluster.memory) if cluster else available_memory(),
        data=data.stat().st_size if data.exists() else 0,
        main_setting=MAIN_SETTING if in_pod else "",
    )
