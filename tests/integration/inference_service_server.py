"""A local HTTP server that speaks Kubernetes' API for InferenceServices, for tests.

Of the Deployments behind them it shows what a test puts in `deployments`; none by default.

Server-side apply is Kubernetes' own: fields are owned by managers, a field that another manager
owns with another value is a conflict (409), and a field that its manager applies no longer goes
away. Lists are owned whole, as those of KServe's schema are.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

PATH = re.compile(
    r"/apis/serving\.kserve\.io/v1beta1/namespaces/(?P<space>[\w-]+)/inferenceservices/(?P<name>.+)"
)
DEPLOYMENT = re.compile(r"/apis/apps/v1/namespaces/[\w-]+/deployments/(?P<name>.+)")
CONFIG_MAP = re.compile(r"/api/v1/namespaces/[\w-]+/configmaps/(?P<name>.+)")
Object = dict[str, Any]
Field = tuple[str, ...]


class InferenceServiceServer:
    """The API server and its one controller, `reconcile`.

    Args:
        reconcile: KServe: called at each read with the object and how often it was read since it
            was last applied; sets the status.
        namespaces: that exist.
    """

    def __init__(
        self,
        reconcile: Callable[[Object, int], None],
        namespaces: tuple[str, ...] = ("agents",),
    ) -> None:
        self.reconcile = reconcile
        self.namespaces = namespaces
        self.objects: dict[str, Object] = {}
        self.deployments: dict[str, Object] = {}
        self.config_maps: dict[str, Object] = {}
        self.applied: list[Object] = []
        self.requests: list[tuple[str, str]] = []
        self.failing: list[int] = []
        self.forbidden = ""
        self.answering = threading.Event()
        self.answering.set()
        self._owners: dict[str, dict[str, dict[Field, Any]]] = {}
        self._reads: dict[str, int] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests.append((self.command, self.path))
                if not server.answering.is_set():
                    server.answering.wait(30)
                    return
                status, answer = server._answer(self.command, self.path, self.headers, body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PATCH = do_DELETE = _handle

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> InferenceServiceServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answering.set()
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """A kubeconfig file that names this server."""
        named = {"name": "here"}
        content = {
            "current-context": "here",
            "clusters": [{**named, "cluster": {"server": self.address}}],
            "users": [{**named, "user": {"token": "secret"}}],
            "contexts": [{**named, "context": {"cluster": "here", "user": "here"}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def apply(self, name: str, manifest: Object, manager: str) -> tuple[int, Object]:
        """Server-side apply, without force."""
        wanted = dict(_leaves(manifest))
        for field in (("metadata", "name"), ("metadata", "namespace"), ("apiVersion",), ("kind",)):
            wanted.pop(field, None)
        owners = self._owners.setdefault(name, {})
        conflicts = [
            f'conflict with "{other}": .{".".join(field)}'
            for other, fields in owners.items()
            for field, value in fields.items()
            if other != manager and field in wanted and wanted[field] != value
        ]
        if conflicts:
            message = f"Apply failed with {len(conflicts)} conflicts: {'; '.join(conflicts)}"
            return _status(409, "Conflict", message)
        found = self.objects.get(name)
        new = copy.deepcopy(found) if found else {k: manifest[k] for k in ("apiVersion", "kind")}
        shared = {field for other, fields in owners.items() if other != manager for field in fields}
        for field in owners.get(manager, {}).keys() - wanted.keys() - shared:
            _remove(new, field)
        for field, value in wanted.items():
            _put(new, field, value)
        owners[manager] = wanted
        metadata = new.setdefault("metadata", {})
        metadata |= {key: manifest["metadata"][key] for key in ("name", "namespace")}
        metadata.setdefault("uid", str(uuid.uuid4()))
        changed = found is None or found["spec"] != new["spec"]
        metadata["generation"] = (found["metadata"]["generation"] if found else 0) + changed
        metadata["managedFields"] = [
            {"manager": who, "operation": "Apply", "fieldsV1": _fields(fields)}
            for who, fields in owners.items()
        ]
        self.objects[name] = new
        self._reads[name] = 0
        return 200 if found else 201, new

    def _answer(self, method: str, path: str, headers: Message, body: bytes) -> tuple[int, Object]:
        if self.failing:
            return _status(self.failing.pop(0), "Failing", "the server is out of order")
        if headers["Authorization"] != "Bearer secret":
            return _status(401, "Unauthorized", "Unauthorized")
        split = urlsplit(path)
        if self.forbidden and self.forbidden in split.path:
            return _status(403, "Forbidden", f"{self.forbidden} is forbidden")
        if deployment := DEPLOYMENT.fullmatch(split.path):
            found = self.deployments.get(deployment["name"])
            return (200, found) if found else _status(404, "NotFound", "deployment not found")
        if config_map := CONFIG_MAP.fullmatch(split.path):
            if method == "PATCH":
                self.config_maps[config_map["name"]] = yaml.safe_load(body)
            found = self.config_maps.get(config_map["name"])
            return (200, found) if found else _status(404, "NotFound", "config map not found")
        place = PATH.fullmatch(split.path)
        if place is None or place["space"] not in self.namespaces:
            return _status(404, "NotFound", f'namespaces "{place and place["space"]}" not found')
        name, query = place["name"], parse_qs(split.query)
        if method == "PATCH":
            assert headers["Content-Type"] == "application/apply-patch+yaml"
            manifest = yaml.safe_load(body)
            status, answer = self.apply(name, manifest, query["fieldManager"][0])
            if status < 300:
                self.applied.append(manifest)
            return status, answer
        found = self.objects.get(name)
        if found is None:
            message = f'inferenceservices.serving.kserve.io "{name}" not found'
            return _status(404, "NotFound", message)
        if method == "DELETE":
            del self.objects[name], self._owners[name]
            return _status(200, "Success", "")
        self.reconcile(found, self._reads[name])
        self._reads[name] += 1
        return 200, found


def condition(
    kind: str, status: str, reason: str = "", message: str = "", since: str = "t0"
) -> Object:
    """A condition of a status, as Kubernetes has it."""
    made = {"type": kind, "status": status, "reason": reason, "message": message}
    return {**{k: v for k, v in made.items() if v}, "lastTransitionTime": since}


def _status(code: int, reason: str, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "code": code, "reason": reason, "message": message}


def _leaves(value: Any, path: Field = ()) -> Iterator[tuple[Field, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _put(target: Object, path: Field, value: Any) -> None:
    for key in path[:-1]:
        target = target.setdefault(key, {})
    target[path[-1]] = value


def _remove(target: Object, path: Field) -> None:
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]


def _fields(owned: dict[Field, Any]) -> Object:
    """`fieldsV1`: the names of owned fields, `f:` before each."""
    made: Object = {}
    for path in owned:
        inner = made
        for key in path:
            inner = inner.setdefault(f"f:{key}", {})
    return made
