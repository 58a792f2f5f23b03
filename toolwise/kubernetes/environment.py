"""Environment variables of containers, from Kubernetes secrets."""

from __future__ import annotations

from kubernetes import client as k8s


def secret_variable(secret: str, key: str, *, optional: bool = False) -> k8s.V1EnvVar:
    """The variable that is named like a secret's key; an optional one is unset without it."""
    selector = k8s.V1SecretKeySelector(name=secret, key=key, optional=optional or None)
    return k8s.V1EnvVar(name=key, value_from=k8s.V1EnvVarSource(secret_key_ref=selector))
