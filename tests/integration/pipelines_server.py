"""A local server that speaks as much of the Kubeflow Pipelines API as a submission asks for.

It can ask for a session, which its Dex gives to who fills in the form, as oauth2-proxy and Dex lead
a browser through it.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "user@example.com", "12341234"


def task(name: str, state: str, start: int = 0, end: int | None = None, error: str = "") -> Any:
    """A node of a run, as `task_details` has it."""
    made: dict[str, Any] = {
        "run_id": "r1",
        "display_name": name,
        "state": state,
        "start_time": f"2026-01-01T00:00:{start:02d}Z",
        "end_time": f"2026-01-01T00:00:{end:02d}Z" if end is not None else "1970-01-01T00:00:00Z",
        "child_tasks": [{"pod_name": f"metis-{name}-123"}],
    }
    return made | ({"error": {"code": 13, "message": error}} if error else {})


def run(state: str, *tasks: Any, error: str = "") -> dict[str, Any]:
    """A run, as `GET runs/{id}` answers."""
    made: dict[str, Any] = {
        "experiment_id": "e1",
        "run_id": "r1",
        "display_name": "metis",
        "state": state,
        "run_details": {"task_details": list(tasks)},
    }
    return made | ({"error": {"code": 13, "message": error}} if error else {})


Query = dict[str, str]


class Call(NamedTuple):
    """A request, as the server has understood it."""

    method: str
    path: str
    query: Query
    body: bytes


@dataclass
class Pipelines:
    """What the server holds, and how it behaves.

    Lists come one thing a page, and what somebody else has made comes first.

    Args:
        known_pipeline: whether the pipeline has been uploaded.
        versions: names of its versions.
        known_experiment: whether the experiment is there.
        multi_user: whether users have namespaces; then the server refuses what names none, as it
            refuses one that is named where there are none.
        health: answers to `healthz` in place of the server's own, which its UI passes on.
        moved: where the server has moved to.
        runs: answers to looks at the run, one a look; the last one stays.
        refuse: answer 403 to all but `healthz`.
        token: what requests have to carry, where the server asks for a token.
        sessions: valid session cookies, where it asks for one (then it has a Dex).
        page: whether it shows everybody its pages, as it does behind a port-forward.
    """

    known_pipeline: bool = False
    versions: tuple[str, ...] = ()
    known_experiment: bool = False
    multi_user: bool = False
    health: dict[str, Any] | None = None
    moved: str | None = None
    runs: list[Any] = field(default_factory=lambda: [run("SUCCEEDED")])
    refuse: bool = False
    token: str | None = None
    sessions: set[str] | None = None
    page: bool = False
    logins: int = 0
    calls: list[Call] = field(default_factory=list)

    def call(self, method: str, path: str) -> Call:
        return next(call for call in self.calls if (call.method, call.path) == (method, path))

    def body_of(self, method: str, path: str) -> bytes:
        return self.call(method, path).body

    def look(self) -> Any:
        return self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]


class PipelinesServer:
    """Serves `Pipelines` at one port, which it can leave and come back to."""

    def __init__(self, state: Pipelines) -> None:
        self.state = state
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._serve()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def start(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self.state))
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()


def _handler(state: Pipelines) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            split = urlsplit(self.path)
            if self._sign_in(method, split.path, parse_qs(split.query), body):
                return
            path = split.path.removeprefix("/apis/v2beta1")
            query = {key: values[0] for key, values in parse_qs(split.query).items()}
            state.calls.append(Call(method, path, query, body))
            if state.moved:
                self._lead(state.moved, 301)
            elif state.token and self.headers["Authorization"] != f"Bearer {state.token}":
                self._reply(401, {"error": "Unauthorized"})
            elif state.refuse and path != "/healthz":
                self._reply(403, {"error": "not in this namespace"})
            else:
                self._speak(method, path, query, body)

        def _speak(self, method: str, path: str, query: Query, body: bytes) -> None:
            pipeline = {"pipeline_id": "p1", "display_name": "metis-qwen3-vl-8b"}
            experiment = {"experiment_id": "e0", "display_name": "qwen3-vl-8b"}
            if path in ("/pipelines", "/pipelines/upload", "/experiments"):
                named = query if (method, path) != ("POST", "/experiments") else json.loads(body)
                if ("namespace" in named) != state.multi_user:
                    self._reply(400, {"error": f"{path}: namespace {named.get('namespace')}"})
                    return
            match method, path:
                case "GET", "/" if state.page:
                    self._send(200, b"<html>Kubeflow Pipelines", "text/html")
                case "GET", "/healthz":
                    self._reply(200, state.health or {"multi_user": state.multi_user})
                case "GET", "/pipelines":
                    self._page("pipelines", query, [pipeline] if state.known_pipeline else [])
                case "POST", "/pipelines/upload":
                    self._reply(200, pipeline)
                case "GET", "/pipelines/p1/versions":
                    found = [
                        {"pipeline_version_id": f"v-{name}", "display_name": name}
                        for name in state.versions
                    ]
                    self._page("pipeline_versions", query, found)
                case "POST", "/pipelines/upload_version":
                    self._reply(200, {"pipeline_version_id": "v1", "pipeline_id": "p1"})
                case "GET", "/experiments":
                    self._page("experiments", query, [experiment] if state.known_experiment else [])
                case "POST", "/experiments":
                    self._reply(200, {"experiment_id": "e1", "display_name": "qwen3-vl-8b"})
                case "POST", "/runs":
                    self._reply(200, {"run_id": "r1"})
                case "GET", "/runs/r1":
                    answer = state.look()
                    if isinstance(answer, int):
                        self._reply(answer, {"error": "out of order"})
                    elif isinstance(answer, str):
                        self._send(200, answer.encode(), "text/html")
                    else:
                        self._reply(200, answer)
                case _:
                    self._reply(404, {"error": f"{method} {path}"})

        def _page(self, key: str, query: Query, ours: list[Any]) -> None:
            """One thing of a list, the first of which is somebody else's."""
            another = {"display_name": "another"}
            kinds = ("pipeline_id", "pipeline_version_id", "experiment_id")
            everything = [another | dict.fromkeys(kinds, "x"), *ours]
            at = int(query.get("page_token", "0"))
            more = {"next_page_token": str(at + 1)} if at + 1 < len(everything) else {}
            self._reply(200, {key: [everything[at]], **more})

        def _sign_in(
            self, method: str, path: str, query: dict[str, list[str]], body: bytes
        ) -> bool:
            """Be oauth2-proxy and Dex; False where the request is for the server behind them."""
            if state.sessions is None:
                return False
            match method, path:
                case "GET", "/oauth2/start":
                    self._lead("/dex/auth?client_id=kubeflow&state=s")
                case "GET", "/dex/auth":
                    self._send(200, b"<a href=/dex/auth/local>", "text/html")
                case "GET", "/dex/auth/local":
                    self._lead("/dex/auth/local/login?state=s")
                case "GET", "/dex/auth/local/login":
                    self._send(200, b"<form method=post>", "text/html")
                case "POST", "/dex/auth/local/login":
                    form = parse_qs(body.decode())
                    if form != {"login": [USER], "password": [PASSWORD]}:
                        self._send(401, b"Invalid Email Address and password", "text/html")
                    else:
                        self._lead("/dex/approval?req=r", 303)
                case "GET", "/dex/approval":
                    self._send(200, b"<form method=post>", "text/html")
                case "POST", "/dex/approval":
                    assert parse_qs(body.decode()) == {"approval": ["approve"]}
                    self._lead("/oauth2/callback?code=c", 303)
                case "GET", "/oauth2/callback":
                    state.logins += 1
                    session = f"session-{state.logins}"
                    state.sessions.add(session)
                    self._lead("/", 302, f"oauth2_proxy_kubeflow={session}; Path=/")
                case _:
                    cookie = self.headers.get("Cookie", "")
                    if any(f"oauth2_proxy_kubeflow={one}" in cookie for one in state.sessions):
                        if path == "/":
                            self._send(200, b"<html>Kubeflow", "text/html")
                            return True
                        return False
                    self._send(403, b"<html>Sign in", "text/html")
            return True

        def _lead(self, to: str, status: int = 302, cookie: str = "") -> None:
            self.send_response(status)
            self.send_header("Location", to)
            if cookie:
                self.send_header("Set-Cookie", cookie)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _reply(self, status: int, body: Any) -> None:
            self._send(status, json.dumps(body).encode(), "application/json")

        def _send(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
