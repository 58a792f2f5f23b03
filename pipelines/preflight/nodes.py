"""Nodes of a cluster, as pods that want GPUs see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from kubernetes.utils import parse_quantity

from toolwise.kubernetes.toleration import Toleration
from toolwise.profile import KubeflowSettings

Taint = Mapping[str, str]


class Node(NamedTuple):
    """A node.

    Args:
        name: its name.
        accelerators: GPUs that pods can have there.
        cpu, memory: cores and bytes that pods can have there.
        ready: whether it takes pods, but for its taints.
        taints: of those, the ones that keep pods off.
    """

    name: str
    accelerators: int
    cpu: Decimal
    memory: Decimal
    ready: bool
    taints: Sequence[Taint]

    @classmethod
    def read(cls, node: Mapping[str, Any], kind: str) -> Node:
        """A node as the API server has it; `kind` is the resource name of its GPUs."""
        status, spec = node["status"], node["spec"]
        offered = status.get("allocatable", {})
        conditions = {one["type"]: one["status"] for one in status.get("conditions", [])}
        return cls(
            name=node["metadata"]["name"],
            accelerators=int(parse_quantity(offered.get(kind, "0"))),
            cpu=parse_quantity(offered.get("cpu", "0")),
            memory=parse_quantity(offered.get("memory", "0")),
            ready=conditions.get("Ready") == "True" and not spec.get("unschedulable"),
            taints=[
                taint for taint in spec.get("taints", []) if taint["effect"] != "PreferNoSchedule"
            ],
        )

    def unfit(self, kubeflow: KubeflowSettings) -> str:
        """Why a pod of the profile does not run there; empty where it does."""
        if not self.ready:
            return "is not ready, or cordoned"
        for taint in self.taints:
            if not any(_tolerates(one, taint) for one in kubeflow.tolerations):
                value = f"={taint['value']}" if taint.get("value") else ""
                return f"has the taint {taint['key']}{value}:{taint['effect']}"
        for name in ("cpu", "memory"):
            if getattr(self, name) < parse_quantity(getattr(kubeflow, name)):
                return f"has less {name} than kubeflow.{name}"
        return ""


def room_beside(
    nodes: Sequence[Node], trainers: int, each: int, server: int, kubeflow: KubeflowSettings
) -> bool:
    """Whether a vLLM server has room while a training runs.

    Args:
        nodes: those on which pods of the profile run.
        trainers: pods of the training, each on a node of its own.
        each: GPUs of one.
        server: GPUs of the server's pod, which has the cores and memory of a trainer's.
        kubeflow: says how much that is.
    """
    for chosen, node in enumerate(nodes):
        if node.accelerators < server:
            continue
        left = node._replace(
            accelerators=node.accelerators - server,
            cpu=node.cpu - parse_quantity(kubeflow.cpu),
            memory=node.memory - parse_quantity(kubeflow.memory),
        )
        after = (left, *nodes[:chosen], *nodes[chosen + 1 :])
        if sum(one.accelerators >= each and not one.unfit(kubeflow) for one in after) >= trainers:
            return True
    return False


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    return (
        toleration.key in (None, taint["key"])
        and toleration.effect in (None, taint["effect"])
        and (toleration.operator == "Exists" or toleration.value == taint.get("value", ""))
    )
