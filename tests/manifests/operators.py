"""What operators read and make: labels and annotations, pods, and the rest of a fixed vocabulary.

Kubernetes takes any label, any annotation and, in many fields, any word; the operator that should
have read it then does nothing. So each is held against a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.pods import Document, Pod

_ANY = r".+"
_LEVEL = "privileged|baseline|restricted"
_VERSION = r"latest|v1\.\d+"

MARKS = {
    "app": _ANY,
    "app.kubernetes.io/component": _ANY,
    "app.kubernetes.io/instance": _ANY,
    "app.kubernetes.io/managed-by": _ANY,
    "app.kubernetes.io/name": _ANY,
    "app.kubernetes.io/part-of": _ANY,
    "app.kubernetes.io/version": _ANY,
    "checksum/settings": "[0-9a-f]{64}",
    # https://docs.aws.amazon.com/eks/latest/userguide/iam-roles-for-service-accounts.html
    "eks.amazonaws.com/role-arn": r"arn:aws:iam::\d{12}:role/.+",
    # The default of Grafana's sidecar, https://github.com/kiwigrid/k8s-sidecar
    "grafana_dashboard": "1",
    # https://helm.sh/docs/topics/charts_hooks/
    "helm.sh/chart": _ANY,
    "helm.sh/hook": "test",
    "helm.sh/hook-delete-policy": "before-hook-creation",
    "helm.sh/resource-policy": "keep",
    # https://kubernetes.io/docs/concepts/security/pod-security-admission/
    "pod-security.kubernetes.io/audit": _LEVEL,
    "pod-security.kubernetes.io/audit-version": _VERSION,
    "pod-security.kubernetes.io/enforce": _LEVEL,
    "pod-security.kubernetes.io/enforce-version": _VERSION,
    "pod-security.kubernetes.io/warn": _LEVEL,
    "pod-security.kubernetes.io/warn-version": _VERSION,
    # KServe, pkg/constants/constants.go and pkg/credentials/s3
    "prometheus.kserve.io/path": "/.*",
    "prometheus.kserve.io/port": r"\d+",
    "serving.kserve.io/deploymentMode": "Standard|Knative",
    "serving.kserve.io/s3-endpoint": r"[\w.-]+(:\d+)?",
    "serving.kserve.io/s3-region": r"[a-z0-9-]+",
    "serving.kserve.io/s3-usehttps": "[01]",
    "serving.kserve.io/server-type": "huggingfaceserver",
    # kube-prometheus-stack selects ServiceMonitors by it.
    "release": _ANY,
    # Kubeflow Trainer, pkg/constants/constants.go
    "trainer.kubeflow.org/framework": "torch",
    "trainer.kubeflow.org/trainjob-ancestor-step": "dataset-initializer|model-initializer|trainer",
}
"""Names of labels and annotations, with a pattern of their values."""

_AGENT = {"containers": [{"name": "kserve-container", "ports": [{"containerPort": 8080}]}]}

PODS = (
    # The pipeline's InferenceService, which the step `deploy` applies.
    Pod(
        "KServe's transformer",
        None,
        {"serving.kserve.io/inferenceservice": "metis", "component": "transformer"},
        _AGENT,
        False,
    ),
    Pod(
        "KServe's predictor",
        None,
        {"serving.kserve.io/inferenceservice": "metis", "component": "predictor"},
        _AGENT,
        False,
    ),
    Pod("a step", None, {"pipelines.kubeflow.org/v2_component": "true"}, {}, False),
    Pod("a TrainJob's node", None, {"jobset.sigs.k8s.io/jobset-name": "train-hdpo-0"}, {}, False),
    # toolwise/training/launcher/vllm_servers.py
    Pod("vLLM beside a TrainJob", None, {"app.kubernetes.io/name": "vllm"}, {}, False),
)
"""Pods that are in no manifest of ours, with the labels their makers give them."""

WORDS = {
    "accessModes": {"ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "effect": {"NoExecute", "NoSchedule", "PreferNoSchedule"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "medium": {"", "Memory"},
    "operator": {"DoesNotExist", "Equal", "Exists", "In", "NotIn"},
    "policyTypes": {"Egress", "Ingress"},
    "protocol": {"SCTP", "TCP", "UDP"},
    "restartPolicy": {"Always", "Never", "OnFailure"},
    "sessionAffinity": {"ClientIP", "None"},
    "topologyKey": {"kubernetes.io/hostname", "topology.kubernetes.io/zone"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
}
"""Fields that take some words only, which Kubernetes' published schemas do not say."""

TAINTS = {"nvidia.com/gpu"}
"""Keys that tolerations may name: of k8s/README.md."""

AMOUNTS = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
"""What a container asks for, and a LimitRange gives."""

QUOTAS = {
    *(f"{side}.{amount}" for side in ("requests", "limits") for amount in AMOUNTS),
    "requests.storage",
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "secrets",
    "services",
} - {"limits.nvidia.com/gpu"}
"""https://kubernetes.io/docs/concepts/policy/resource-quotas/ ; extended resources by request."""

RIGHTS = {
    "": {"configmaps", "pods", "pods/log", "secrets", "services"},
    "apps": {"deployments"},
    "argoproj.io": {"workflowtaskresults"},
    "serving.kserve.io": {"inferenceservices"},
    "trainer.kubeflow.org": {"trainjobs"},
}
"""Resources that roles may name, by API group."""

NAMES = {
    "configmaps": {"kfp-launcher"},
    "secrets": {"mlpipeline-minio-artifact"},
}
"""Objects that Kubeflow Pipelines reads in a namespace of runs, by resource."""

VERBS = {"create", "delete", "get", "list", "patch", "update", "watch"}


def vocabulary_faults(document: Document) -> Iterator[str]:
    """Words of a manifest that nobody would read."""
    yield from _walk(document, "")
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "ResourceQuota":
        yield from _unknown(spec["hard"], QUOTAS, "spec.hard")
    if kind == "LimitRange":
        for limit in spec["limits"]:
            if limit["type"] not in ("Container", "Pod", "PersistentVolumeClaim"):
                yield f"spec.limits: there is no type {limit['type']}"
            for name in limit.keys() - {"type"}:
                yield from _unknown(limit[name], AMOUNTS | {"storage"}, f"spec.limits.{name}")
    if kind == "NetworkPolicy":
        for side, policy_type in (("ingress", "Ingress"), ("egress", "Egress")):
            if side in spec and policy_type not in spec.get("policyTypes", ()):
                yield f"spec.{side} has no effect without {policy_type} in policyTypes"
    if kind == "ServiceMonitor":
        paths = [endpoint.get("path", "/metrics") for endpoint in spec["endpoints"]]
        yield from _unknown(paths, {"/metrics"}, "spec.endpoints.path")
    if kind in ("Role", "ClusterRole"):
        for rule in document.get("rules") or ():
            yield from _unknown(rule["verbs"], VERBS, "rules.verbs")
            for resource in rule["resources"] if rule.get("resourceNames") else ():
                yield from _unknown(rule["resourceNames"], NAMES.get(resource, ()), resource)
            for group in rule["apiGroups"]:
                yield from _unknown(rule["resources"], RIGHTS.get(group, ()), f"rules, {group}")


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, path)
    if not isinstance(value, dict):
        return
    for name, below in value.items():
        where = f"{path}.{name}".lstrip(".")
        if where in ("data", "stringData"):
            continue
        if name in ("labels", "annotations") and isinstance(below, dict):
            for mark, content in below.items():
                if mark not in MARKS:
                    yield f"{where}: nobody reads {mark}"
                elif not re.fullmatch(MARKS[mark], content):
                    yield f"{where}: {mark} is never {content}"
        elif name == "resources" and isinstance(below, dict) and where != "spec.resources":
            for side in ("requests", "limits"):
                yield from _unknown(below.get(side, {}), AMOUNTS, f"{where}.{side}")
        elif name == "tolerations":
            named = [toleration["key"] for toleration in below if "key" in toleration]
            yield from _unknown(named, TAINTS, where)
        elif name in WORDS:
            words = below if isinstance(below, list) else [below]
            yield from _unknown(words, WORDS[name], where)
        yield from _walk(below, where)


def _unknown(names: Any, known: Any, where: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{where}: nobody knows {name}"
