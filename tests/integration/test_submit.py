"""Submitting speaks the Kubeflow Pipelines API, and says what is missing when it cannot."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import yaml

from pipelines.submit import submit_pipeline
from toolwise.errors import BackendError, InputError
from toolwise.profile import load_profile


class PipelineServer(ThreadingHTTPServer):
    """Answers the calls of one submission as the v2beta1 API does, and remembers them."""

    def __init__(self, known_pipeline: bool, versions: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.known_pipeline = known_pipeline
        self.versions = list(versions)
        self.calls: list[tuple[str, str, bytes]] = []
        self.refuse = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def body_of(self, method: str, path: str) -> bytes:
        return next(body for m, p, body in self.calls if (m, p) == (method, path))


class _Api(BaseHTTPRequestHandler):
    server: PipelineServer

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path.removeprefix("/apis/v2beta1")
        self.server.calls.append((method, path, body))
        if self.server.refuse and path != "/healthz":
            self._reply(403, {"error": "not in this namespace"})
            return
        pipeline = {"pipeline_id": "p1", "display_name": "metis-qwen3-vl-8b"}
        match method, path:
            case "GET", "/healthz":
                self._reply(200, {"multi_user": False})
            case "GET", "/pipelines":
                self._reply(200, {"pipelines": [pipeline] if self.server.known_pipeline else None})
            case "POST", "/pipelines/upload":
                self._reply(200, pipeline)
            case "GET", "/pipelines/p1/versions":
                found = [
                    {"pipeline_version_id": f"v-{name}", "display_name": name, "pipeline_id": "p1"}
                    for name in self.server.versions
                ]
                self._reply(200, {"pipeline_versions": found})
            case "POST", "/pipelines/upload_version":
                self._reply(200, {"pipeline_version_id": "v1", "pipeline_id": "p1"})
            case "GET", "/experiments":
                self._reply(200, {"experiments": []})
            case "POST", "/experiments":
                self._reply(200, {"experiment_id": "e1", "display_name": "qwen3-vl-8b"})
            case "POST", "/runs":
                self._reply(200, {"run_id": "r1"})
            case _:
                self._reply(404, {"error": f"{method} {path}"})

    def _reply(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve():
    servers: list[PipelineServer] = []

    def start(known_pipeline: bool, versions: tuple[str, ...] = ()) -> PipelineServer:
        server = PipelineServer(known_pipeline, versions)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def profile():
    return load_profile("qwen3-vl-8b")


def test_a_new_pipeline_is_uploaded_and_run_with_the_seed(serve, profile):
    server = serve(known_pipeline=False)
    submitted = submit_pipeline(profile, 3, server.url)
    uploaded = server.body_of("POST", "/pipelines/upload").decode()
    document = re.search(r"\r\n\r\n(.*?)\r\n--", uploaded, re.DOTALL)
    assert document is not None
    spec = next(iter(yaml.safe_load_all(document[1])))
    assert spec["pipelineInfo"]["name"] == "metis-qwen3-vl-8b"
    run = json.loads(server.body_of("POST", "/runs"))
    assert run["experiment_id"] == "e1"
    assert run["pipeline_version_reference"] == {
        "pipeline_id": "p1",
        "pipeline_version_id": "v1",
    }
    assert run["runtime_config"]["parameters"] == {"seed": 3}
    assert submitted.run_id == "r1"
    assert submitted.link == f"{server.url}/#/runs/details/r1"


def test_the_same_pipeline_is_not_uploaded_twice(serve, profile):
    server = serve(known_pipeline=True)
    submit_pipeline(profile, 0, server.url)
    body = server.body_of("POST", "/runs")
    version = json.loads(body)["display_name"].split()[1]

    again = serve(known_pipeline=True, versions=(version,))
    submit_pipeline(profile, 0, again.url)
    assert not [path for _, path, _ in again.calls if "upload" in path]
    run = json.loads(again.body_of("POST", "/runs"))
    assert run["pipeline_version_reference"]["pipeline_version_id"] == f"v-{version}"


def test_without_an_address_it_says_how_to_give_one(profile):
    with pytest.raises(InputError, match=r"no server to submit to(.|\n)*KFP_HOST=http"):
        submit_pipeline(profile, 0, None)


def test_a_server_that_is_not_there_is_named_at_once(profile):
    with pytest.raises(BackendError, match=r"no Kubeflow Pipelines server answers at http://127"):
        submit_pipeline(profile, 0, "http://127.0.0.1:9")


def test_another_web_server_is_not_mistaken_for_kubeflow(serve, profile):
    server = serve(known_pipeline=False)
    with pytest.raises(BackendError, match="answers 404"):
        submit_pipeline(profile, 0, f"{server.url}/somewhere")


def test_a_refusal_carries_what_the_server_said(serve, profile):
    server = serve(known_pipeline=False)
    server.refuse = True
    with pytest.raises(BackendError, match=r"403(.|\n)*not in this namespace"):
        submit_pipeline(profile, 0, server.url)


def test_a_local_profile_is_not_submitted():
    with pytest.raises(InputError, match="'demo' has no section `kubeflow`"):
        submit_pipeline(load_profile("demo"), 0, "http://127.0.0.1:9")
