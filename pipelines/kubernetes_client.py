"""A client of the Kubernetes cluster that whoever submits has at hand."""

from __future__ import annotations

import os
from pathlib import Path

import urllib3
from kubernetes import client as k8s
from kubernetes import config


class NoCluster(Exception):
    """Neither a kubeconfig nor a pod's service account is there."""


def kubernetes_client() -> k8s.ApiClient:
    """The cluster that `KUBECONFIG` or `~/.kube/config` names, or that this pod is in.

    Raises:
        NoCluster: there is none.
    """
    settings = k8s.Configuration()
    # Those who ask again do so themselves, and urllib3's attempts would multiply theirs.
    settings.retries = urllib3.Retry(0)  # pyright: ignore[reportAttributeAccessIssue]
    file = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    try:
        if os.environ.get("KUBECONFIG") or Path(file).exists():
            config.load_kube_config(file, client_configuration=settings)
        else:
            config.load_incluster_config(client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise NoCluster(f"no cluster is configured here: {error}") from None
    except Exception as error:
        # What the package makes of a file that is no kubeconfig depends on what it is instead.
        raise NoCluster(f"{file} is no kubeconfig: {type(error).__name__}: {error}") from None
    return k8s.ApiClient(settings)
