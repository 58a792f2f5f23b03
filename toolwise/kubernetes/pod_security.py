"""What the Pod Security Standard "restricted" asks of pods, and a read-only root file system.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from kubernetes import client as k8s

USER = 10001
"""The user of Toolwise's own images."""


def restricted_pod(user: int | None = None) -> k8s.V1PodSecurityContext:
    """Of a pod: no root, and the container runtime's own syscall filter.

    Args:
        user: who its containers run as and whom its volumes belong to; each image's own without.
    """
    return k8s.V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=user,
        fs_group=user,
        seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )


def restricted_container() -> k8s.V1SecurityContext:
    """Of a container: no way to more rights, and nothing of its image to be changed."""
    return k8s.V1SecurityContext(
        run_as_non_root=True,
        allow_privilege_escalation=False,
        read_only_root_filesystem=True,
        capabilities=k8s.V1Capabilities(drop=["ALL"]),
    )
