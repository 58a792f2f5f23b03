"""InferenceServices at a Kubernetes API server: read, apply, delete; their Deployments.

A ConfigMap beside each has the manifest that is known to work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import urllib3
from kubernetes import client as k8s
from kubernetes import config

from toolwise.errors import BackendError, InputError
from toolwise.retry import call_endpoint

FIELD_MANAGER = "toolwise"
"""Who owns, in Kubernetes' book-keeping, the fields that a deployment sets."""

_APPLY = [("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict")]

TIMEOUT = (5.0, 30.0)
"""Seconds to connect to the API server, and to wait for its answer."""

_API = "/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"
_CONFIG_MAP = "/api/v1/namespaces/{namespace}/configmaps/{name}"
_DEPLOYMENT = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}"

Object = dict[str, Any]


class InferenceServices:
    """The InferenceServices of one namespace.

    Args:
        namespace: theirs.
        api: a client; by default of the cluster that `KUBECONFIG` names, or that this pod is in.

    Raises:
        InputError: there is neither a kubeconfig nor a pod's service account.
    """

    def __init__(self, namespace: str, api: k8s.ApiClient | None = None) -> None:
        self.namespace = namespace
        self._client = api or _configured()
        self.address = f"Kubernetes at {self._client.configuration.host}"

    def get(self, name: str) -> Object | None:
        """The object as the cluster has it; None where there is none.

        Raises:
            BackendError: the API server failed or refused.
        """
        return self._find(_API, name)

    def deployments(self, name: str) -> dict[str, Object]:
        """The Deployments behind one, by component; none in KServe's serverless mode.

        Raises:
            BackendError: the API server failed or refused.
        """
        found = {
            part: self._find(_DEPLOYMENT, f"{name}-{part}") for part in ("predictor", "transformer")
        }
        return {part: deployment for part, deployment in found.items() if deployment is not None}

    def proven(self, name: str) -> Object | None:
        """The manifest that was last recorded as working; None where there is none.

        Raises:
            BackendError: the API server failed or refused.
        """
        found = self._find(_CONFIG_MAP, f"{name}-proven")
        return None if found is None else json.loads(found["data"]["manifest"])

    def record_proven(self, manifest: Object) -> None:
        """Record a manifest as working.

        Raises:
            BackendError: the API server failed or refused.
        """
        name = f"{manifest['metadata']['name']}-proven"
        record = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": self.namespace},
            "data": {"manifest": json.dumps(manifest)},
        }
        try:
            self._request("PATCH", name, _APPLY, record, _CONFIG_MAP)
        except k8s.ApiException as error:
            raise self._refused(error) from None

    def _find(self, path: str, name: str) -> Object | None:
        try:
            return self._request("GET", name, path=path)
        except k8s.ApiException as error:
            if error.status == 404:
                return None
            raise self._refused(error) from None

    def apply(self, manifest: Object) -> Object:
        """Server-side apply: set the fields of `manifest`, and take away those it had set before.

        Fields that somebody else has set to something else are not taken over.

        Raises:
            InputError: a field belongs to somebody else, the manifest is invalid, or namespace or
                KServe are not there.
            BackendError: the API server failed or refused.
        """
        name = manifest["metadata"]["name"]
        try:
            return self._request("PATCH", name, _APPLY, manifest)
        except k8s.ApiException as error:
            said = _said(error)
            where = f"InferenceService {name} in namespace {self.namespace} at {self.address}"
            if error.status == 404:
                raise InputError(
                    f"{where} cannot be made: {said}; is KServe installed there, and the namespace "
                    "made?"
                ) from None
            if error.status == 409:
                raise InputError(
                    f"{where} has fields that somebody else has set: {said}; have them give these "
                    "up, or set them in the profile as they are there"
                ) from None
            if error.status in (400, 422):
                raise InputError(f"{where} is refused: {said}") from None
            raise self._refused(error) from None

    def delete(self, name: str) -> None:
        """Delete the object, if it is there.

        Raises:
            BackendError: the API server failed or refused.
        """
        try:
            self._request("DELETE", name)
        except k8s.ApiException as error:
            if error.status != 404:
                raise self._refused(error) from None

    def _request(
        self,
        method: str,
        name: str,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        path: str = _API,
    ) -> Any:
        def call() -> Any:
            return self._client.call_api(
                path.format(namespace=self.namespace, name=name),
                method,
                query_params=query,
                header_params={
                    "Accept": "application/json",
                    "Content-Type": "application/apply-patch+yaml",
                },
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )

        return call_endpoint(call, self.address, _transient)

    def _refused(self, error: k8s.ApiException) -> BackendError:
        return BackendError(f"{self.address} refused ({error.status}): {_said(error)}")


def applied_fields(found: Object) -> Object | None:
    """What `FIELD_MANAGER` has applied of an object: the manifest it was last applied as.

    None where it has applied nothing. Kubernetes keeps the names of the fields of each manager in
    `metadata.managedFields` ("Server-Side Apply", field management).
    """
    for manager in found["metadata"].get("managedFields", []):
        if manager["manager"] == FIELD_MANAGER and manager["operation"] == "Apply":
            identity = {key: found["metadata"][key] for key in ("name", "namespace")}
            fields = _owned(found, manager["fieldsV1"])
            return {
                **fields,
                "apiVersion": found["apiVersion"],
                "kind": found["kind"],
                "metadata": {**fields.get("metadata", {}), **identity},
            }
    return None


def _owned(value: Any, fields: Mapping[str, Any]) -> Any:
    """The part of `value` that a `fieldsV1` names: `f:` is a field, `k:` an item by its keys."""
    names = [name for name in fields if name != "."]
    if not names:
        return value
    if isinstance(value, list):
        chosen = ((name, _item(value, name)) for name in names)
        return [_owned(item, fields[name]) for name, item in chosen]
    present = [name for name in names if name.removeprefix("f:") in value]
    return {name[2:]: _owned(value[name[2:]], fields[name]) for name in present}


def _item(items: list[Any], name: str) -> Any:
    kind, _, text = name.partition(":")
    wanted = json.loads(text)
    if kind == "v":
        return wanted
    return next(item for item in items if wanted.items() <= item.items())


def _configured() -> k8s.ApiClient:
    settings = k8s.Configuration()
    try:
        config.load_config(client_configuration=settings)
    except config.ConfigException as error:
        raise InputError(
            f"there is no cluster to deploy to: {error}; name a kubeconfig in KUBECONFIG"
        ) from None
    # The bound on retries is ours (`call_endpoint`), and urllib3's would multiply it.
    settings.retries = urllib3.Retry(0)  # pyright: ignore[reportAttributeAccessIssue]
    return k8s.ApiClient(settings)


def _transient(error: Exception) -> bool:
    if isinstance(error, k8s.ApiException):
        return error.status == 429 or error.status is None or error.status >= 500
    return isinstance(error, urllib3.exceptions.HTTPError)


def _said(error: k8s.ApiException) -> str:
    """The message of the `Status` that Kubernetes answers with."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
