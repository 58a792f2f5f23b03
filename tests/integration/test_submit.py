"""Submitting finds the server, signs in, speaks the Pipelines API, and says what is missing."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from mlflow import MlflowClient
from mlflow_server import MlflowServer
from pipelines_server import PASSWORD, USER, Pipelines, PipelinesServer, run, task
from typer.testing import CliRunner

from pipelines.metis import plan
from pipelines.submission import places
from pipelines.submission.api import NotSignedIn, PipelinesApi, ServerAway
from pipelines.submission.authentication import Cookie, credentials
from pipelines.submission.places import mlflow_page
from pipelines.submission.server import Server, find_server
from pipelines.submit import open_server, run_namespace, submit_pipeline
from toolwise import tracking
from toolwise.cli import app
from toolwise.errors import BackendError, InputError
from toolwise.profile import load_profile
from toolwise.tracking import PipelineRun

ROOT = Path(__file__).parents[2]

Serve = Callable[[Pipelines], PipelinesServer]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("KFP_", "KF_", "KUBE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[PipelinesServer] = []

    def start(state: Pipelines) -> PipelinesServer:
        servers.append(PipelinesServer(state))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def profile():
    return load_profile("qwen3-vl-8b")


def test_a_run_is_looked_for_where_a_server_for_one_user_is(profile, monkeypatch):
    assert run_namespace(profile, False) == "kubeflow"
    monkeypatch.setenv("KFP_SERVER_NAMESPACE", "pipelines")
    assert run_namespace(profile, False) == "pipelines"
    assert run_namespace(profile, True) == "toolwise"
    monkeypatch.setenv("KFP_NAMESPACE", "mine")
    assert run_namespace(profile, False) == "mine"


def test_a_new_pipeline_is_uploaded_and_run_with_the_seed(serve: Serve, profile):
    server = serve(Pipelines())
    with open_server(server.url) as api:
        submitted = submit_pipeline(profile, 3, api, plan(profile))
    uploaded = server.state.body_of("POST", "/pipelines/upload").decode()
    document = re.search(r"\r\n\r\n(.*?)\r\n--", uploaded, re.DOTALL)
    assert document is not None
    spec = next(iter(yaml.safe_load_all(document[1])))
    assert spec["pipelineInfo"]["name"] == "metis-qwen3-vl-8b"
    body = json.loads(server.state.body_of("POST", "/runs"))
    assert body["experiment_id"] == "e1"
    assert body["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}
    assert body["runtime_config"]["parameters"] == {"seed": 3}
    assert body["service_account"] == "toolwise-pipeline"
    experiment = json.loads(server.state.body_of("POST", "/experiments"))
    assert experiment == {"display_name": "qwen3-vl-8b"}
    assert submitted.run_id == "r1"
    assert api.server.page("r1") == f"{server.url}/#/runs/details/r1"
    version = body["display_name"].split()[1]
    calls = server.state.calls
    assert [(call.method, call.path, call.query) for call in calls if call.query] == [
        ("GET", "/pipelines", {"page_size": "100"}),
        ("POST", "/pipelines/upload", {"name": "metis-qwen3-vl-8b"}),
        ("GET", "/pipelines/p1/versions", {"page_size": "100"}),
        ("POST", "/pipelines/upload_version", {"name": version, "pipelineid": "p1"}),
        ("GET", "/experiments", {"page_size": "100"}),
    ]


def test_the_same_pipeline_is_not_uploaded_twice(serve: Serve, profile):
    first = serve(Pipelines(known_pipeline=True, multi_user=True))
    with open_server(first.url) as api:
        submit_pipeline(profile, 0, api, plan(profile))
    version = json.loads(first.state.body_of("POST", "/runs"))["display_name"].split()[1]
    experiment = json.loads(first.state.body_of("POST", "/experiments"))
    assert experiment["namespace"] == "toolwise"
    listed = [call.query for call in first.state.calls if call.path == "/pipelines"]
    page = {"namespace": "toolwise", "page_size": "100"}
    assert listed == [page, {**page, "page_token": "1"}]

    again = serve(Pipelines(known_pipeline=True, versions=("x", version), known_experiment=True))
    with open_server(again.url) as api:
        submit_pipeline(profile, 0, api, plan(profile))
    assert not [call.path for call in again.state.calls if "upload" in call.path]
    body = json.loads(again.state.body_of("POST", "/runs"))
    assert body["pipeline_version_reference"]["pipeline_version_id"] == f"v-{version}"
    assert body["experiment_id"] == "e0"
    assert ("POST", "/experiments") not in [(call.method, call.path) for call in again.state.calls]


def test_a_server_that_is_not_there_or_is_another_one_is_named_at_once(serve: Serve):
    with (
        pytest.raises(ServerAway, match=r"no Kubeflow Pipelines server answers at http://127"),
        open_server("http://127.0.0.1:9"),
    ):
        pass
    server = serve(Pipelines())
    with pytest.raises(BackendError, match="answers 404"), open_server(f"{server.url}/somewhere"):
        pass


@pytest.mark.parametrize(
    ("answer", "several"),
    [
        # The UI before and after it has first reached the API server, and when that is away again.
        ({"frontendTagName": "2.17.0", "apiServerReady": False}, None),
        ({"multi_user": True, "apiServerMultiUser": True, "apiServerReady": True}, True),
        ({"multi_user": False, "apiServerMultiUser": False, "apiServerReady": True}, False),
        ({"multi_user": True, "apiServerMultiUser": True, "apiServerReady": False}, True),
        # An API server without a UI, which leaves out what is false in some versions.
        ({"commit_sha": "unknown", "tag_name": "2.17.0", "multi_user": True}, True),
        ({"commit_sha": "unknown", "tag_name": "2.17.0", "multi_user": False}, False),
        ({"commit_sha": "unknown"}, False),
    ],
)
def test_a_server_is_for_one_user_only_where_the_api_server_says_so(
    serve: Serve, answer: dict[str, object], several: bool | None
):
    server = serve(Pipelines(health=answer))
    api = PipelinesApi(Server(server.url, ""), credentials(server.url, {}))
    if several is None:
        with pytest.raises(ServerAway, match=r"has not reached its API server yet"):
            api.multi_user()
    else:
        assert api.multi_user() is several


def test_a_refusal_carries_what_the_server_said(serve: Serve, profile):
    server = serve(Pipelines(refuse=True))
    with (
        open_server(server.url) as api,
        pytest.raises(BackendError, match=r"403(.|\n)*not in this namespace"),
    ):
        submit_pipeline(profile, 0, api, plan(profile))


def test_a_token_a_cookie_and_a_projected_token_sign_in(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    server = serve(Pipelines(token="right"))
    with pytest.raises(NotSignedIn, match=r"no credentials \(401\)"), open_server(server.url):
        pass
    monkeypatch.setenv("KFP_TOKEN", "wrong")
    with pytest.raises(NotSignedIn, match=r"KFP_TOKEN \(401\)"), open_server(server.url):
        pass
    monkeypatch.setenv("KFP_TOKEN", "right")
    with open_server(server.url):
        pass
    monkeypatch.delenv("KFP_TOKEN")
    file = tmp_path / "token"
    file.write_text("right\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    with open_server(server.url) as api:
        server.state.token = "rotated"
        file.write_text("rotated")
        assert api.multi_user() is False
        server.state.token = "and gone"
        with pytest.raises(NotSignedIn, match=r"service-account token \(401\)"):
            api.multi_user()

    dex = serve(Pipelines(sessions={"mine"}))
    cookie = PipelinesApi(Server(dex.url, ""), Cookie("oauth2_proxy_kubeflow=mine"))
    assert cookie.multi_user() is False
    assert dex.state.sessions is not None
    dex.state.sessions.clear()
    with pytest.raises(NotSignedIn, match=r"KFP_COOKIE \(403\)(.|\n)*KFP_COOKIE="):
        cookie.multi_user()


def test_a_user_signs_in_at_dex_and_again_when_the_session_has_expired(serve: Serve):
    server = serve(Pipelines(sessions=set()))
    login = {"KFP_USERNAME": USER, "KFP_PASSWORD": PASSWORD}
    api = PipelinesApi(Server(server.url, ""), credentials(server.url, login))
    assert api.multi_user() is False
    assert server.state.sessions == {"session-1"}
    server.state.sessions.clear()
    assert api.multi_user() is False
    assert server.state.sessions == {"session-2"}
    wrong = credentials(server.url, {**login, "KFP_PASSWORD": "guess"})
    with pytest.raises(InputError, match=f"does not take KFP_USERNAME={USER}"):
        wrong.headers()
    with pytest.raises(InputError, match="without KFP_PASSWORD"):
        credentials(server.url, {"KFP_USERNAME": USER})
    assert "guess" not in repr(wrong)
    open_to_all = serve(Pipelines())
    with pytest.raises(BackendError, match="no form of Dex"):
        credentials(open_to_all.url, login).headers()
    forwarded = serve(Pipelines(page=True))
    gateway = r"Dex is at the gateway.* KFP_HOST.*svc/istio-ingressgateway.*leave KFP_USERNAME out"
    with pytest.raises(InputError, match=gateway):
        credentials(forwarded.url, login).headers()


KUBECTL = """#!/bin/sh
echo "$@" >> {log}
echo "W1128 memcache.go:287] couldn't get resource list for metrics.k8s.io/v1beta1" >&2
[ -e {broken} ] && echo 'error: services "ml-pipeline-ui" not found' >&2 && exit 1
echo "Forwarding from 127.0.0.1:{port} -> 3000"
exec sleep 1000
"""


def test_without_an_address_the_server_is_found_in_the_cluster_or_by_kubectl(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(InputError, match=r"no server to submit to(.|\n)*KFP_HOST="),
        find_server(None),
    ):
        pass
    server = serve(Pipelines())
    kubectl, log, broken = tmp_path / "kubectl", tmp_path / "log", tmp_path / "broken"
    kubectl.write_text(KUBECTL.format(log=log, broken=broken, port=server.port))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
    with find_server(None) as found:
        assert found.url == server.url
        assert log.read_text() == "port-forward --namespace kubeflow service/ml-pipeline-ui :80\n"
        first = found.forward
        assert first is not None
        found.revive()
        assert found.forward is first
        first.kill()
        first.wait()
        found.revive()
        second = found.forward
        assert second is not None
        assert second.poll() is None
    assert second.poll() is not None
    broken.touch()
    with pytest.raises(BackendError, match='"ml-pipeline-ui" not found'), find_server(None):
        pass
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with find_server(None) as found:
        assert found.url == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    with find_server("http://named/") as found:
        assert found.url == "http://named"


SLOW_KUBECTL = """#!/bin/sh
trap '' HUP
echo started $$ > {log}
{forwarding}
exec sleep 1000
"""


def interruptible(number: signal.Signals) -> list[str]:
    """Before a command: it obeys that signal, which `&` and `nohup` have tests ignore."""
    return ["env", f"--default-signal={number.name}"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("reached", [True, False])
def test_kubectl_ends_with_whoever_started_it(
    serve: Serve, tmp_path: Path, number: signal.Signals, reached: bool
):
    server = serve(Pipelines(runs=[run("RUNNING")]))
    kubectl, log = tmp_path / "kubectl", tmp_path / "log"
    forwarding = f'echo "Forwarding from 127.0.0.1:{server.port} -> 3000"' if reached else ""
    os.mkfifo(log)
    kubectl.write_text(SLOW_KUBECTL.format(log=log, forwarding=forwarding))
    kubectl.chmod(0o755)
    process = subprocess.Popen(
        [*interruptible(number), sys.executable, "-m", "toolwise.cli", "follow", "r1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    started = int(log.read_text().split()[1])
    if reached:
        assert process.stdout.readline().startswith("Following http://127.0.0.1")
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode != 0
    # It was in a session of its own, and nobody else is.
    with pytest.raises(ProcessLookupError):
        os.killpg(started, 0)


def toolwise(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_submitted_run_is_followed_and_ends_with_where_its_results_are(serve: Serve):
    server = serve(Pipelines(runs=[run("SUCCEEDED", task("promote", "SUCCEEDED", 1, 4))]))
    result = toolwise("submit", "--host", server.url)
    output = result.output
    assert result.exit_code == 0, output
    assert "Preflight skipped: no cluster is configured here" in output
    assert f"{server.url}/#/runs/details/r1" in output
    assert "promote: done in 3s" in output
    assert MLFLOW in output
    assert "kubectl get inferenceservice metis --namespace toolwise" in output


MLFLOW = (
    "MLflow:   http://127.0.0.1:5000   experiment qwen3-vl-8b, run r1   "
    "(first: kubectl port-forward --namespace toolwise service/toolwise-mlflow 5000:5000)"
)


def test_a_failed_run_fails_the_command_with_the_reason(serve: Serve):
    failing = run("FAILED", task("train-sft", "FAILED", 1, 4, "out of memory"), error="it failed")
    server = serve(Pipelines(runs=[failing]))
    result = toolwise("follow", "r1", "--host", server.url)
    assert result.exit_code == 1
    assert "run r1 failed\nit failed\ntrain-sft failed: out of memory" in result.output
    assert MLFLOW in result.output
    assert "kubectl get inferenceservice metis --namespace toolwise" in result.output


def test_the_page_of_a_run_in_mlflow_is_named_where_it_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mlflow = MlflowServer(tmp_path)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.uri)
        monkeypatch.setattr(places, "SECONDS", 60.0)  # however busy the machine
        steps = PipelineRun("qwen3-vl-8b", "r1")
        with tracking.step(steps, "prepare-data"):
            pass
        page = mlflow_page(mlflow.uri, "qwen3-vl-8b", "r1")
        found = re.fullmatch(rf"{mlflow.uri}/#/experiments/(\w+)/runs/(\w+)", page)
        assert found is not None
        stored = MlflowClient(mlflow.uri).get_run(found[2])
        assert (stored.info.experiment_id, stored.info.run_name) == (found[1], "r1")
        without = mlflow_page(mlflow.uri, "qwen3-vl-8b", "another")
        assert without == f"{mlflow.uri}/#/experiments/{found[1]}"
        unknown = mlflow_page(mlflow.uri, "none", "r1")
        assert unknown == f"{mlflow.uri}   experiment none, run r1"
    finally:
        mlflow.kill()


def test_the_page_of_a_run_is_named_with_what_opens_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with find_server(None) as server:
        assert server.page("r1") == (
            "http://127.0.0.1:8080/#/runs/details/r1   (first: kubectl port-forward "
            "--namespace kubeflow service/ml-pipeline-ui 8080:80)"
        )


def test_a_server_that_has_moved_is_told_from_one_that_asks_to_sign_in(serve: Serve):
    moved = serve(Pipelines(moved="https://kubeflow.example.com/pipeline/"))
    result = toolwise("follow", "r1", "--host", moved.url)
    assert f"{moved.url} has moved (301 to https://kubeflow.example.com/pipeline/)" in result.output
    assert "Sign in" not in result.output


def test_a_run_that_is_out_of_sight_is_told_from_one_that_failed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KFP_COOKIE", "oauth2_proxy_kubeflow=mine")
    expired = serve(Pipelines(sessions=set()))
    result = toolwise("follow", "r1", "--profile", "qwen3-vl-2b", "--host", expired.url)
    assert result.exit_code == 3
    assert "does not take KFP_COOKIE" in result.output
    assert f"follow r1 --profile qwen3-vl-2b --host {expired.url}\n" in result.output


def test_a_run_that_is_not_there_is_said_to_be_so(serve: Serve):
    server = serve(Pipelines())
    result = toolwise("follow", "r2", "--host", server.url)
    assert result.exit_code == 1
    assert "404" in result.output
    assert "The run goes on" not in result.output


def test_a_server_on_this_machine_is_reached_past_a_proxy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = serve(Pipelines())
    with open_server(server.url):
        pass


def test_a_token_is_asked_for_where_it_is_named():
    with pytest.raises(InputError, match="KF_PIPELINES_SA_TOKEN_PATH=/no/token: there is no such"):
        credentials("http://server", {"KF_PIPELINES_SA_TOKEN_PATH": "/no/token"})


def test_a_dry_run_submits_nothing_and_a_run_can_be_left_alone(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    server = serve(Pipelines())
    dry = toolwise("submit", "--dry-run", "--host", server.url)
    assert dry.exit_code == 0, dry.output
    assert "Nothing was submitted" in dry.output
    assert (tmp_path / "build" / "metis-qwen3-vl-8b.yaml").exists()
    assert server.state.calls == []
    left = toolwise("submit", "--no-follow", "--skip-preflight", "--host", server.url)
    assert left.exit_code == 0, left.output
    assert f"follow r1 --profile qwen3-vl-8b --host {server.url}\n" in left.output
    assert ("GET", "/runs/r1") not in [(call.method, call.path) for call in server.state.calls]


def test_the_command_that_is_named_follows_the_run(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / "my profiles" / "mine.yaml"
    own.parent.mkdir()
    text = (ROOT / "pipelines/profiles/qwen3-vl-2b.yaml").read_text()
    own.write_text(text.replace("name: qwen3-vl-2b", "name: mine"))
    monkeypatch.chdir(tmp_path)
    server = serve(Pipelines())
    options = ("--no-follow", "--skip-preflight", "--host", server.url)
    left = toolwise("submit", "--profile", str(own), *options)
    command = shlex.split(left.output.splitlines()[-1])
    followed = subprocess.run(command, capture_output=True, text=True)
    assert followed.returncode == 0, followed.stderr
    assert "experiment mine, run r1" in followed.stdout


def test_an_ablation_is_submitted_and_followed_by_its_variants(serve: Serve, tmp_path: Path):
    variants = tmp_path / "variants.yaml"
    variants.write_text("grpo: {variant: grpo}\nweak: {w_tool: 0.05}\n")
    done = task("train-hdpo-2", "SUCCEEDED", 1, 4)
    server = serve(Pipelines(runs=[run("RUNNING", done), 403]))
    options = ("--variants", str(variants), "--skip-preflight", "--host", server.url)
    result = toolwise("submit", *options)
    assert server.state.call("POST", "/pipelines/upload").query["name"] == "ablation-qwen3-vl-8b"
    assert "train-hdpo weak: done in 3s" in result.output
    assert result.exit_code == 3
    assert f"--variants {variants}" in result.output.splitlines()[-1]


@pytest.mark.parametrize("on_path", [True, False])
def test_the_command_is_named_as_it_was_typed(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: bool
):
    script = tmp_path / "toolwise"
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    if on_path:
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    server = serve(Pipelines())
    options = ("--no-follow", "--skip-preflight", "--host", server.url)
    command = toolwise("submit", *options).output.splitlines()[-1].split()
    assert command[:3] == ["toolwise" if on_path else str(script), "follow", "r1"]


def test_a_server_that_is_not_there_is_told_before_anything_else():
    result = toolwise("submit", "--host", "http://127.0.0.1:9")
    assert result.output.startswith("Error: no Kubeflow Pipelines server answers")


def test_a_local_profile_is_not_submitted():
    result = toolwise("submit", "--profile", "demo", "--host", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "'demo' has no section `kubeflow`" in result.output


@pytest.mark.parametrize(
    ("command", "sent"),
    [
        (("follow", "r1"), []),
        (
            ("submit", "--skip-preflight"),
            ["/pipelines/upload", "/pipelines/upload_version", "/experiments", "/runs"],
        ),
    ],
)
def test_ctrl_c_leaves_the_run_going_and_says_how_to_follow_it_again(
    serve: Serve, command: tuple[str, ...], sent: list[str]
):
    server = serve(Pipelines(runs=[run("RUNNING", task("train-sft", "RUNNING"))]))
    cli = [sys.executable, "-m", "toolwise.cli"]
    process = subprocess.Popen(
        [*interruptible(signal.SIGINT), *cli, *command, "--host", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "train-sft: started" in line:
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "The run goes on" in rest
    assert MLFLOW in rest
    assert f"-m toolwise.cli follow r1 --profile qwen3-vl-8b --host {server.url}\n" in rest
    # Nothing that ends it, such as `runs/r1:terminate`.
    assert [call.path for call in server.state.calls if call.method != "GET"] == sent
