"""Environment variables of containers, from Kubernetes secrets."""

from __future__ import annotations

from kubernetes import client as k8s

from toolwise.storage import S3_REGION


def secret_variable(secret: str, key: str) -> k8s.V1EnvVar:
    """The variable that is named like a secret's key; unset where it is an optional one's."""
    selector = k8s.V1SecretKeySelector(
        name=secret, key=key, optional=True if key == S3_REGION else None
    )
    return k8s.V1EnvVar(name=key, value_from=k8s.V1EnvVarSource(secret_key_ref=selector))
