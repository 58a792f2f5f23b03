"""A Kubernetes API server on loopback that keeps what Helm applies; nothing in it runs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.manifests.manifests import Document

RESOURCES = {
    "v1": {
        "configmaps": "ConfigMap",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "rbac.authorization.k8s.io/v1": {"rolebindings": "RoleBinding", "roles": "Role"},
}
"""Plural and kind of what the server knows, by API version; all of it is namespaced."""


class LocalCluster:
    """The server: discovery, and objects that are read, made, applied and deleted.

    Args:
        more: further resources, as in `RESOURCES`.
    """

    def __init__(self, more: dict[str, dict[str, str]] | None = None) -> None:
        self.resources = RESOURCES | (more or {})
        self.objects: dict[str, Document] = {}
        """What was applied, by path."""
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = urlsplit(self.path).path
                # Applies come as YAML, everything else as JSON, which YAML includes.
                status, answer = cluster._answer(self.command, path, yaml.safe_load(body or "null"))
                # An empty document is empty in protobuf, the one form that is asked for there.
                text = b"" if path == "/openapi/v2" else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> LocalCluster:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self) -> str:
        """The content of a kubeconfig file that names this server."""
        named = {"name": "here"}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{**named, "cluster": {"server": self.address}}],
                "users": [{**named, "user": {}}],
                "contexts": [{**named, "context": {"cluster": "here", "user": "here"}}],
            }
        )

    def the(self, kind: str, name: str) -> Document:
        """An object that was applied."""
        [found] = [
            one
            for one in self.objects.values()
            if (one["kind"], one["metadata"]["name"]) == (kind, name)
        ]
        return found

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, Document]:
        if path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path.startswith("/openapi/"):
            # Without schemas nothing is held against them.
            return 200, {"paths": {}}
        if path.endswith("/customresourcedefinitions"):
            return 200, {"kind": "CustomResourceDefinitionList", "items": []}
        if path == "/apis":
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": self._groups()}
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version in self.resources:
            return 200, self._resource_list(version)
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
        if method in ("POST", "PUT", "PATCH"):
            made = path not in self.objects
            self.objects[path] = body
            return 201 if made else 200, body
        found = self.objects.pop(path, None) if method == "DELETE" else self.objects.get(path)
        if found is None:
            return 404, {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}
        return 200, found

    def _groups(self) -> list[Document]:
        return [
            {
                "name": version.partition("/")[0],
                "versions": [{"groupVersion": version, "version": version.partition("/")[2]}],
                "preferredVersion": {
                    "groupVersion": version,
                    "version": version.partition("/")[2],
                },
            }
            for version in self.resources
            if "/" in version
        ]

    def _resource_list(self, version: str) -> Document:
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": [
                {
                    "name": plural,
                    "singularName": kind.lower(),
                    "namespaced": True,
                    "kind": kind,
                    "verbs": ["create", "delete", "get", "list", "patch", "update"],
                }
                for plural, kind in self.resources[version].items()
            ],
        }
