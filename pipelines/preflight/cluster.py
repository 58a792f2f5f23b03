"""Questions to a Kubernetes API server."""

from __future__ import annotations

import base64
from typing import Any

import urllib3
from kubernetes import client as k8s

from pipelines.kubernetes_client import NoCluster, kubernetes_client

_TIMEOUT = (5.0, 15.0)


class Unanswered(Exception):
    """What was asked of the cluster is not known."""


class Unreachable(Unanswered):
    """There is no cluster to ask, or it does not answer."""


class Forbidden(Unanswered):
    """The cluster does not tell whoever asks."""


class Cluster:
    """The cluster that `KUBECONFIG` names, or that this pod is in.

    Raises:
        Unreachable: there is none, or it does not answer.
    """

    def __init__(self) -> None:
        try:
            self._client = kubernetes_client()
        except NoCluster as why:
            raise Unreachable(str(why)) from None
        try:
            self._ask("GET", "/version")
        except Forbidden as why:
            host = self._client.configuration.host
            raise Unreachable(f"Kubernetes at {host} does not know us: {why}") from None

    def get(self, path: str) -> dict[str, Any] | None:
        """The object at `path`; None where there is none.

        Raises:
            Forbidden: the cluster does not say.
            Unreachable: it does not answer.
        """
        return self._ask("GET", path)

    def has_resource(self, group: str, resource: str) -> bool:
        """Whether the cluster knows a kind of object: `serving.kserve.io/v1beta1`, its plural."""
        found = self.get(f"/apis/{group}")
        return any(one["name"] == resource for one in (found or {}).get("resources", []))

    def may(self, account: str, namespace: str, verb: str, group: str, resource: str) -> bool:
        """Whether a service account has a right.

        Args:
            account: its name.
            namespace: where it is.
            verb: `create`, `get`, ….
            group: API group, empty for the core.
            resource: plural, with the namespace in which the right is wanted before it where that
                is another one (`models:services`), and the subresource after it (`pods/log`).
        """
        place, _, name = resource.rpartition(":")
        kind, _, part = name.partition("/")
        wanted = {
            "namespace": place or namespace,
            "verb": verb,
            "group": group,
            "resource": kind,
            "subresource": part,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": [
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{namespace}",
                    "system:authenticated",
                ],
                "resourceAttributes": {key: value for key, value in wanted.items() if value},
            },
        }
        answer = self._ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool((answer or {}).get("status", {}).get("allowed"))

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """What a secret holds, by key; None where there is none."""
        found = self.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if found is None:
            return None
        return {
            key: base64.b64decode(value).decode(errors="replace")
            for key, value in (found.get("data") or {}).items()
        }

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        try:
            answer: Any = self._client.call_api(
                path,
                method,
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT,
            )
        except k8s.ApiException as error:
            if error.status == 404:
                return None
            if error.status in (401, 403):
                what = f"{method} {path}: {error.status} {error.reason}"
                raise Forbidden(f"may not ask: {what}") from None
            raise Unreachable(
                f"Kubernetes at {self._client.configuration.host} answers {error.status}"
            ) from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unreachable(
                f"Kubernetes at {self._client.configuration.host} does not answer ({error})"
            ) from None
        if not isinstance(answer, dict):
            raise Unreachable(f"{self._client.configuration.host} is no Kubernetes API server")
        return answer
