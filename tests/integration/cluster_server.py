"""A local server that answers a preflight as a Kubernetes API server, S3 and a registry would."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Right = tuple[str, str, str]
"""Namespace, verb, resource."""


@dataclass
class World:
    """What the server holds.

    Args:
        objects: path at the API server → object.
        resources: API group and version → kinds of object there.
        rights: those that a service account has; all, where there are none.
        forbidden: paths (their beginnings) that are answered 403.
        broken: paths (their beginnings) that are answered 503.
        token: what requests have to carry.
        buckets: S3's, and `bucket/key` of objects.
        images: the registry's, `repository:tag`.
        login: who may pull, where the registry asks for a token.
        public: the registry gives that token to who names nobody, too.
        presented: credentials that came with a request for a token.
        texts: path → plain text, the logs of pods.
    """

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    resources: dict[str, list[str]] = field(default_factory=dict)
    rights: set[Right] | None = None
    forbidden: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    token: str = "me"
    buckets: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    login: tuple[str, str] | None = None
    public: bool = False
    presented: list[str | None] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    reviewed: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def add_secret(self, namespace: str, name: str, **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.objects[f"/api/v1/namespaces/{namespace}/secrets/{name}"] = {"data": data}


class ClusterServer:
    """Serves one `World`."""

    def __init__(self, world: World) -> None:
        self.world = world
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self, b"")

            def do_HEAD(self) -> None:
                server.answer(self, b"")

            def do_POST(self) -> None:
                server.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, path: Path) -> Path:
        named = {"name": "here"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{**named, "cluster": {"server": f"http://{self.address}"}}],
            "users": [{**named, "user": {"token": "me"}}],
            "contexts": [{**named, "context": {"cluster": "here", "user": "here"}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        world, split = self.world, urlsplit(request.path)
        path = split.path
        world.asked.append(request.path)
        if path.startswith("/v2/"):
            self._registry(request, path)
        elif path == "/token":
            query = parse_qs(split.query)
            assert query["scope"] == ["repository:toolwise/operator:pull"]
            said = f"Basic {base64.b64encode(':'.join(world.login or ()).encode()).decode()}"
            given = request.headers.get("Authorization")
            world.presented.append(given)
            known = given == said or (world.public and given is None)
            _reply(request, 200 if known else 401, {"token": "pulling"})
        elif request.command == "HEAD":
            found = path.strip("/") in world.buckets
            _reply(request, 200 if found else 404, {})
        elif request.headers["Authorization"] != f"Bearer {world.token}":
            _reply(request, 401, {"kind": "Status", "code": 401})
        elif path.startswith(world.broken):
            _reply(request, 503, {"kind": "Status", "code": 503})
        elif path.startswith(world.forbidden):
            _reply(request, 403, {"kind": "Status", "code": 403})
        elif path == "/version":
            _reply(request, 200, {"gitVersion": "v1.31.0"})
        elif path.endswith("/subjectaccessreviews"):
            spec = json.loads(body)["spec"]
            world.reviewed.append(spec)
            asked = spec["resourceAttributes"]
            part = asked.get("subresource")
            resource = asked["resource"] + (f"/{part}" if part else "")
            right = (asked["namespace"], asked["verb"], resource)
            allowed = world.rights is None or right in world.rights
            _reply(request, 201, {"status": {"allowed": allowed}})
        elif path.removeprefix("/apis/") in world.resources:
            names = world.resources[path.removeprefix("/apis/")]
            _reply(request, 200, {"resources": [{"name": name} for name in names]})
        elif path in world.texts:
            _send(request, 200, world.texts[path].encode(), "text/plain")
        elif path in world.objects:
            _reply(request, 200, world.objects[path])
        else:
            _reply(request, 404, {"kind": "Status", "code": 404})

    def _registry(self, request: BaseHTTPRequestHandler, path: str) -> None:
        assert request.command == "HEAD"
        name = path.removeprefix("/v2/").replace("/manifests/", ":")
        token = request.headers.get("Authorization")
        if self.world.login and token != "Bearer pulling":
            request.send_response(401)
            realm = f'realm="http://{self.address}/token",service="registry"'
            scope = f'scope="repository:{name.split(":")[0]}:pull"'
            request.send_header("WWW-Authenticate", f"Bearer {realm},{scope}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        _reply(request, 200 if name in self.world.images else 404, {})


def _reply(request: BaseHTTPRequestHandler, status: int, body: Any) -> None:
    _send(request, status, json.dumps(body).encode(), "application/json")


def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, kind: str) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
