"""An InferenceService applied, waited for, tried, and undone, at an API server on loopback HTTP."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from inference_service_server import InferenceServiceServer, Object, condition
from moto.server import ThreadedMotoServer

from tests.manifests.schemas import schema_faults
from toolwise import retry, tracking
from toolwise.data import Task
from toolwise.data.parquet import write_tasks
from toolwise.errors import BackendError, InputError
from toolwise.serving import kubernetes_api, kubernetes_deploy
from toolwise.serving.cluster import ClusterSettings, DeploymentSettings
from toolwise.serving.deploy import Endpoint, ask_two, check_answered
from toolwise.serving.inference_service import inference_service
from toolwise.serving.kubernetes_api import InferenceServices, applied_fields
from toolwise.serving.kubernetes_deploy import deploy_checkpoint, deploy_on_cluster
from toolwise.serving.settings import ServingSettings
from toolwise.steps import run_step

SERVING = ServingSettings(name="metis")
CLUSTER = ClusterSettings(namespace="agents", image="toolwise/agent:1")
SLOW = condition("PredictorReady", "Unknown", "ContainersNotReady", "loading the weights")


def manifest(version: int) -> Object:
    return inference_service(SERVING, CLUSTER, f"s3://models/metis/{version}", None)


def healthy(found: Object, reads: int) -> None:
    """KServe: the status of before at the first look, then at work, then ready."""
    generation = found["metadata"]["generation"]
    if reads == 0:
        return
    if reads == 1:
        found["status"] = {"conditions": [condition("Ready", "Unknown"), SLOW]}
        return
    since = f"t{generation}"
    found["status"] = {
        "conditions": [
            condition("Ready", "True", since=since),
            condition("PredictorReady", "True"),
        ],
        "url": "http://metis.agents.example.com/",
        "address": {"url": "http://metis-transformer.agents.svc.cluster.local"},
    }


def broken(storage: str, status: Object) -> Callable[[Object, int], None]:
    """KServe where one version of the weights never works."""

    def reconcile(found: Object, reads: int) -> None:
        if reads and found["spec"]["predictor"]["model"]["storageUri"] == storage:
            found["status"] = status
        else:
            healthy(found, reads)

    return reconcile


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    # A second passes with each look at the clock: no test waits, and none depends on the machine.
    monkeypatch.setattr(kubernetes_deploy, "monotonic", itertools.count().__next__)
    monkeypatch.setattr(kubernetes_deploy, "sleep", lambda seconds: None)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceServiceServer]:
    with InferenceServiceServer(healthy) as server:
        # A path that is read when the client is made, not when its package is imported.
        monkeypatch.setattr(
            "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
            str(server.kubeconfig(tmp_path / "kubeconfig")),
        )
        monkeypatch.setattr(
            "kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
        )
        yield server


@pytest.fixture
def services(cluster: InferenceServiceServer) -> InferenceServices:
    return InferenceServices("agents")


def works(endpoint: Endpoint) -> None:
    pass


def deploy(services: InferenceServices, version: int, attempt: Any = works, **options: Any):
    return deploy_on_cluster(
        manifest(version), services, attempt, **{"ready_seconds": 30, **options}
    )


def weights(cluster: InferenceServiceServer) -> str:
    return cluster.objects["metis"]["spec"]["predictor"]["model"]["storageUri"]


def test_inside_a_pod_it_is_tried_at_the_name_that_pods_resolve(
    services: InferenceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kubernetes sets it in every container.
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    tried: list[Endpoint] = []
    endpoint = deploy(services, 1, tried.append)
    inside = "http://metis-transformer.agents.svc.cluster.local/openai/v1"
    assert tried == [Endpoint(inside, "metis")]
    assert endpoint == Endpoint("http://metis.agents.example.com/openai/v1", "metis")


def test_it_is_applied_waited_for_and_tried_at_the_services_address(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    tried: list[Endpoint] = []
    told: list[str] = []
    endpoint = deploy(services, 1, tried.append, told=told.append)
    assert endpoint == Endpoint("http://metis.agents.example.com/openai/v1", "metis")
    assert tried == [endpoint]
    assert told == [
        "KServe has not said anything yet",
        "PredictorReady: ContainersNotReady loading the weights",
    ]
    assert cluster.applied == [manifest(1)]
    patch = next(path for method, path in cluster.requests if method == "PATCH")
    assert patch.endswith("/metis?fieldManager=toolwise&fieldValidation=Strict")


@pytest.mark.parametrize(
    "serving", [SERVING, SERVING.model_copy(update={"keys": Path("/k/k.yaml")})]
)
def test_kserve_knows_every_field_that_is_applied(
    serving: ServingSettings,
) -> None:
    cluster = CLUSTER.model_copy(update={"keys_secret": "keys"})
    made = inference_service(serving, cluster, "s3://models/metis/1", "s3://models/c.jsonl")
    assert [*schema_faults(made)] == []


def test_the_status_of_the_revision_before_does_not_pass_for_the_new_ones(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)
    told: list[str] = []
    deploy(services, 2, told=told.append)
    assert told == [
        "KServe has not taken up the change yet",
        "PredictorReady: ContainersNotReady loading the weights",
    ]


def test_where_nothing_has_changed_a_ready_service_is_ready(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)
    cluster.reconcile = lambda found, reads: None
    deploy(services, 1)
    assert cluster.objects["metis"]["metadata"]["generation"] == 1


def test_a_status_that_never_moves_is_believed_after_a_while(
    cluster: InferenceServiceServer, services: InferenceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(services, 1)
    cluster.reconcile = lambda found, reads: None
    monkeypatch.setattr(kubernetes_deploy, "UNCHANGED_SECONDS", 5)
    assert deploy(services, 2).model == "metis"


def test_one_that_is_never_ready_is_told_with_the_reason_and_the_one_before_is_back(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)
    failure = {"reason": "ModelLoadFailed", "message": "no such key"}
    cluster.reconcile = broken(
        "s3://models/metis/2",
        {
            "conditions": [condition("Ready", "False"), SLOW],
            "modelStatus": {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failure},
        },
    )
    with pytest.raises(BackendError) as caught:
        deploy(services, 2, ready_seconds=10)
    assert "metis does not work: it was not ready within 10 s: ModelLoadFailed: no such key" in str(
        caught.value
    )
    assert "loading the weights" in str(caught.value)
    assert "The previous revision is back and ready." in str(caught.value)
    assert weights(cluster) == "s3://models/metis/1"
    assert cluster.applied[-1] == manifest(1)


class Standard:
    """KServe and Kubernetes in Standard mode: rolling updates that the old pods keep Ready.

    Args:
        cluster: where.
        broken: weights whose pods never come up.
    """

    def __init__(self, cluster: InferenceServiceServer, broken: str = "") -> None:
        self.all, self.broken = cluster.deployments, broken
        self.takes_up = True

    def __call__(self, found: Object, reads: int) -> None:
        if reads and self.takes_up:
            for part in ("predictor", "transformer"):
                self._reconcile(f"metis-{part}", found["spec"][part])
        available = [one["status"].get("availableReplicas") for one in self.all.values()]
        if available and all(available):
            url = "http://metis.agents.example.com/"
            found["status"] = {"conditions": [condition("Ready", "True")], "url": url}

    def _reconcile(self, name: str, spec: Object) -> None:
        pod = {key: value for key, value in spec.items() if key != "maxReplicas"}
        before = self.all.get(name)
        if before is None or before["spec"]["template"] != pod:
            generation = before["metadata"]["generation"] + 1 if before else 1
            self.all[name] = {
                "metadata": {"generation": generation},
                "spec": {"replicas": 1, "template": pod},
                "status": {**(before or {}).get("status", {}), "conditions": []},
            }
            return
        status, had = before["status"], before["status"].get("replicas", 0)
        if status.get("observedGeneration") != before["metadata"]["generation"]:
            status |= {"observedGeneration": before["metadata"]["generation"], "updatedReplicas": 1}
            status |= {"replicas": had + 1, "availableReplicas": had}
        elif pod.get("model", {}).get("storageUri") != self.broken:
            status |= {"replicas": 1, "availableReplicas": 1}
        else:
            slow = condition("Progressing", "False", "ProgressDeadlineExceeded", "no progress")
            status["conditions"] = [condition("Available", "True"), slow]


def test_in_standard_mode_it_is_tried_once_every_pod_is_a_new_one(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    cluster.reconcile = Standard(cluster)
    deploy(services, 1)
    told: list[str] = []

    def attempt(endpoint: Endpoint) -> None:
        status = cluster.deployments["metis-predictor"]["status"]
        assert (status["replicas"], status["observedGeneration"]) == (1, 2)

    deploy(services, 2, attempt, told=told.append)
    assert told == [
        "KServe has not taken up the change yet",
        "predictor: Kubernetes has not taken up the change yet",
        "predictor: 0 of 1 new pods available, 1 old ones still there",
    ]


def test_in_standard_mode_new_pods_that_never_come_up_are_undone_though_the_service_is_ready(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    cluster.reconcile = Standard(cluster, broken="s3://models/metis/2")
    deploy(services, 1)
    tried: list[Endpoint] = []
    with pytest.raises(BackendError) as caught:
        deploy(services, 2, tried.append, ready_seconds=90)
    assert tried == []
    assert (
        "not ready within 90 s: predictor: 0 of 1 new pods available, 1 old ones still there"
        in (str(caught.value))
    )
    assert "(ProgressDeadlineExceeded: no progress)" in str(caught.value)
    assert "The previous revision is back and ready." in str(caught.value)
    assert weights(cluster) == "s3://models/metis/1"


def test_in_standard_mode_new_weights_that_kserve_never_takes_up_are_never_believed(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    kserve = cluster.reconcile = Standard(cluster)
    deploy(services, 1)
    kserve.takes_up = False
    with pytest.raises(BackendError, match="KServe has not taken up the change yet\nThe previous"):
        deploy(services, 2, ready_seconds=90)
    # Another number of replicas makes no new pods.
    more = CLUSTER.model_copy(update={"replicas": (1, 3)})
    scaled = inference_service(SERVING, more, "s3://models/metis/1", None)
    assert deploy_on_cluster(scaled, services, works, ready_seconds=90).model == "metis"


def test_an_account_that_may_not_see_deployments_changes_nothing(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)
    cluster.forbidden = "deployments"
    with pytest.raises(BackendError, match=r"refused \(403\): deployments is forbidden"):
        deploy(services, 2)
    assert weights(cluster) == "s3://models/metis/1"


def test_one_that_kserve_refuses_is_not_waited_for(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    cluster.reconcile = lambda found, reads: found.update(
        status={
            "modelStatus": {
                "transitionStatus": "InvalidSpec",
                "lastFailureInfo": {"reason": "RuntimeNotRecognized", "message": "no runtime"},
            }
        }
    )
    with pytest.raises(BackendError, match="KServe refuses it: RuntimeNotRecognized: no runtime"):
        deploy(services, 1, ready_seconds=600)


def test_smoke_questions_that_fail_put_the_one_before_back(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)

    def fails(endpoint: Endpoint) -> None:
        assert weights(cluster) == "s3://models/metis/2"
        raise BackendError("it gave no answer to the question 7")

    with pytest.raises(BackendError, match=r"gave no answer to the question 7\nThe previous"):
        deploy(services, 2, fails)
    assert weights(cluster) == "s3://models/metis/1"


def test_what_a_killed_deployment_has_left_is_not_what_is_put_back(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    class Killed(BaseException):
        pass

    def killed(_: Endpoint) -> None:
        raise Killed

    def fails(_: Endpoint) -> None:
        raise BackendError("it gave no answer")

    deploy(services, 1)
    with pytest.raises(Killed):
        deploy(services, 2, killed)
    assert weights(cluster) == "s3://models/metis/2"
    with pytest.raises(
        BackendError, match=r"no answer\nThe previous revision is back and ready\.$"
    ):
        deploy(services, 2, fails)
    assert weights(cluster) == "s3://models/metis/1"


def no_answer(_: Endpoint) -> None:
    raise BackendError("it gave no answer")


def test_questions_that_fail_while_somebody_else_deploys_undo_nothing(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)

    def overtaken(endpoint: Endpoint) -> None:
        deploy(services, 3)
        no_answer(endpoint)

    with pytest.raises(
        BackendError, match=r"no answer\nSomebody else has deployed meanwhile: noth"
    ):
        deploy(services, 2, overtaken)
    assert weights(cluster) == "s3://models/metis/3"
    assert services.proven("metis") == manifest(3)


def test_questions_that_somebody_elses_pods_may_have_answered_prove_nothing(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)

    def overtaken(_: Endpoint) -> None:
        # Theirs fails, and they put the first one back.
        with pytest.raises(BackendError, match="The previous revision is back and ready"):
            deploy(services, 3, no_answer)

    with pytest.raises(BackendError, match="somebody else has deployed InferenceService metis mea"):
        deploy(services, 2, overtaken)
    assert weights(cluster) == "s3://models/metis/1"
    assert services.proven("metis") == manifest(1)


def test_one_that_is_overtaken_while_it_is_waited_for_is_not_tried(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    def overtaken(found: Object, reads: int) -> None:
        if weights(cluster) == "s3://models/metis/2" and reads == 1:
            cluster.apply("metis", manifest(3), kubernetes_api.FIELD_MANAGER)
        healthy(found, reads)

    deploy(services, 1)
    cluster.reconcile = overtaken
    tried: list[Endpoint] = []
    with pytest.raises(BackendError, match="somebody else has deployed InferenceService metis mea"):
        deploy(services, 2, tried.append)
    assert tried == []
    assert weights(cluster) == "s3://models/metis/3"


def test_a_service_that_was_deleted_and_made_anew_is_somebody_elses(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    def overtaken(endpoint: Endpoint) -> None:
        services.delete("metis")
        deploy(services, 3)
        no_answer(endpoint)

    with pytest.raises(BackendError, match="Somebody else has deployed meanwhile: nothing is"):
        deploy(services, 2, overtaken)
    assert weights(cluster) == "s3://models/metis/3"


def test_what_passed_its_questions_since_this_one_began_is_what_is_put_back(
    cluster: InferenceServiceServer, services: InferenceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(services, 1)
    cluster.apply("metis", manifest(2), kubernetes_api.FIELD_MANAGER)
    apply = services.apply

    def the_other_is_done(applied: Object) -> Object:
        if applied == manifest(3):
            services.record_proven(manifest(2))
        return apply(applied)

    monkeypatch.setattr(services, "apply", the_other_is_done)
    with pytest.raises(BackendError, match=r"The previous revision is back and ready\.$"):
        deploy(services, 3, no_answer)
    assert weights(cluster) == "s3://models/metis/2"


def test_what_is_put_back_without_a_record_of_having_worked_is_said_to_be_so(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    cluster.apply("metis", manifest(1), kubernetes_api.FIELD_MANAGER)

    def fails(_: Endpoint) -> None:
        raise BackendError("it gave no answer")

    with pytest.raises(BackendError, match="is known to have passed"):
        deploy(services, 2, fails)
    assert weights(cluster) == "s3://models/metis/1"


def test_an_account_that_may_not_see_what_has_worked_changes_nothing(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    cluster.forbidden = "configmaps"
    with pytest.raises(BackendError, match=r"refused \(403\): configmaps is forbidden"):
        deploy(services, 1)
    assert cluster.objects == {}


def test_a_first_deployment_that_fails_is_deleted(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    def fails(endpoint: Endpoint) -> None:
        raise InputError("the request is refused")

    with pytest.raises(BackendError, match=r"refused\nThere was none before it"):
        deploy(services, 1, fails)
    assert cluster.objects == {}


def test_a_field_that_somebody_else_has_set_is_a_conflict_and_nothing_changes(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    deploy(services, 1)
    scaled: Any = {
        **{key: manifest(1)[key] for key in ("apiVersion", "kind", "metadata")},
        "spec": {"predictor": {"maxReplicas": 1, "containerConcurrency": 4}},
    }
    assert cluster.apply("metis", scaled, "operator")[0] == 200
    more = CLUSTER.model_copy(update={"replicas": (1, 3)})
    wanted = inference_service(SERVING, more, "s3://models/metis/2", None)
    with pytest.raises(InputError, match=r'conflict with "operator": \.spec\.predictor\.maxRepl'):
        deploy_on_cluster(wanted, services, works, ready_seconds=30)
    assert weights(cluster) == "s3://models/metis/1"
    # What others own stays theirs when the one before is put back.
    with pytest.raises(BackendError, match="The previous revision is back"):
        deploy(services, 2, lambda _: (_ for _ in ()).throw(BackendError("no")))
    assert cluster.applied[-1] == manifest(1)
    assert cluster.objects["metis"]["spec"]["predictor"]["containerConcurrency"] == 4


def test_a_namespace_that_is_not_there_is_named(cluster: InferenceServiceServer) -> None:
    services = InferenceServices("nowhere")
    elsewhere = CLUSTER.model_copy(update={"namespace": "nowhere"})
    wanted = inference_service(SERVING, elsewhere, "s3://models/metis/1", None)
    with pytest.raises(InputError, match=r'namespaces "nowhere" not found; is KServe installed'):
        deploy_on_cluster(wanted, services, works, ready_seconds=30)


def test_one_that_is_deleted_while_it_is_waited_for_is_told(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    def vanishes(found: Object, reads: int) -> None:
        del cluster.objects["metis"]

    cluster.reconcile = vanishes
    with pytest.raises(BackendError, match="it was deleted from namespace agents meanwhile"):
        deploy(services, 1)


def test_an_api_server_that_fails_now_and_then_is_asked_again(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    cluster.failing = [503, 429, 500]
    assert deploy(services, 1).model == "metis"


def test_an_api_server_that_does_not_answer_is_a_backend_failure(
    cluster: InferenceServiceServer, services: InferenceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_api, "TIMEOUT", (0.1, 0.1))
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    cluster.answering.clear()
    with pytest.raises(BackendError, match=rf"{cluster.address} failed 2 times; .*timed out"):
        deploy(services, 1)


def test_credentials_that_are_refused_are_a_backend_failure(
    cluster: InferenceServiceServer, services: InferenceServices
) -> None:
    cluster.failing = [403]
    with pytest.raises(BackendError, match=r"refused \(403\): the server is out of order"):
        deploy(services, 1)


def test_what_was_applied_is_read_back_from_the_owned_fields() -> None:
    found = {
        "apiVersion": "v1",
        "kind": "Thing",
        "metadata": {
            "name": "a",
            "namespace": "n",
            "uid": "1",
            "labels": {"ours": "x", "theirs": "y"},
            "managedFields": [
                {"manager": "kubectl", "operation": "Update", "fieldsV1": {}},
                {
                    "manager": "toolwise",
                    "operation": "Apply",
                    "fieldsV1": {
                        "f:metadata": {"f:labels": {".": {}, "f:ours": {}}},
                        "f:spec": {
                            "f:size": {},
                            "f:parts": {'k:{"name":"b"}': {".": {}, "f:name": {}, "f:port": {}}},
                            "f:tags": {'v:"q"': {}},
                            "f:gone": {},
                        },
                    },
                },
            ],
        },
        "spec": {
            "size": 3,
            "default": True,
            "parts": [{"name": "a"}, {"name": "b", "port": 1, "added": 2}],
            "tags": ["p", "q"],
        },
        "status": {},
    }
    assert applied_fields(found) == {
        "apiVersion": "v1",
        "kind": "Thing",
        "metadata": {"name": "a", "namespace": "n", "labels": {"ours": "x"}},
        "spec": {"size": 3, "parts": [{"name": "b", "port": 1}], "tags": ["q"]},
    }
    found["metadata"]["managedFields"].pop()
    assert applied_fields(found) is None


class Answering(BaseHTTPRequestHandler):
    """The service: answers every chat request with `text`."""

    text = "4"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "metis",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": type(self).text},
                }
            ],
            "toolwise": {"calls": [], "tool_calls": 0},
        }
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="weights")
    yield client
    server.stop()


def test_a_checkpoint_is_published_deployed_and_asked_through_the_service(
    cluster: InferenceServiceServer, service: str, bucket: Any, tmp_path: Path
) -> None:
    def serving(found: Object, reads: int) -> None:
        healthy(found, reads)
        if "url" in found.get("status", {}):
            found["status"]["url"] = service

    cluster.reconcile = serving
    model, corpus = tmp_path / "model", tmp_path / "corpus.jsonl"
    model.mkdir()
    corpus.write_text('{"id": "1", "title": "x", "text": "y"}\n')
    settings = CLUSTER.model_copy(update={"models": "s3://weights/models"})
    questions = [Task(name, "test", "math", "2 + 2?", ("4",)) for name in ("a", "b")]
    told: list[str] = []

    def attempt(endpoint: Endpoint) -> None:
        check_answered(ask_two(endpoint, *questions, tmp_path / "endpoint.json"))

    def deploy_now() -> Endpoint:
        return deploy_checkpoint(model, corpus, SERVING, settings, attempt, told.append)

    (model / "config.json").write_text("{}")
    assert deploy_now().url == f"{service}/openai/v1"
    first = weights(cluster)
    assert first.startswith("s3://weights/models/metis/")
    stored = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="weights")["Contents"]]
    assert f"{first.removeprefix('s3://weights/')}/config.json" in stored
    [container] = cluster.objects["metis"]["spec"]["transformer"]["containers"]
    [given] = [arg for arg in container["args"] if arg.startswith("--corpus=")]
    assert given.removeprefix("--corpus=s3://weights/") in stored
    assert told[0] == "publishing the weights under s3://weights/models"

    def unwanted() -> None:
        raise InputError("another is champion")

    (model / "config.json").write_text('{"late": true}')
    with pytest.raises(InputError, match="another is champion"):
        deploy_checkpoint(model, corpus, SERVING, settings, attempt, told.append, unwanted)
    assert weights(cluster) == first
    answers = json.loads((tmp_path / "endpoint.json").read_text())["answers"]
    assert [answer["correct"] for answer in answers] == [True, True]

    # Other weights, which have nothing to say.
    (model / "config.json").write_text('{"worse": true}')
    Answering.text = ""
    try:
        with pytest.raises(BackendError, match=r"no answer to the question a\nThe previous"):
            deploy_now()
    finally:
        Answering.text = "4"
    assert weights(cluster) == first


def test_a_run_does_not_deploy_what_is_champion_no_more(
    cluster: InferenceServiceServer,
    service: str,
    bucket: Any,
    mlflow_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def serving(found: Object, reads: int) -> None:
        healthy(found, reads)
        if "url" in found.get("status", {}):
            found["status"]["url"] = service

    cluster.reconcile = serving
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path / "steps"))
    monkeypatch.setenv("TOOLWISE_RUN", "a run")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "overtaken")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    registry = tracking.Connection(mlflow_uri).client
    registry.create_registered_model("overtaken")
    runs = [registry.create_run("0").info.run_id for _ in range(2)]
    for run_id in runs:
        registry.create_model_version("overtaken", f"s3://models/{run_id}", run_id)
    for name in ("model", "evaluation"):
        (tmp_path / name).mkdir()
    (tmp_path / "evaluation" / "scores.jsonl").touch()
    (tmp_path / "evaluation" / "mlflow_run").write_text(runs[0])
    (tmp_path / "corpus").touch()
    write_tasks(tmp_path / "benchmark", [Task("a", "test", "math", "2 + 2?", ("4",))])
    inputs = {name: str(tmp_path / name) for name in ("model", "evaluation", "benchmark", "corpus")}
    where = CLUSTER.model_copy(update={"models": "s3://weights/models"})
    settings = DeploymentSettings(serve=SERVING, cluster=where).model_dump_json()

    def deploy_now(content: str) -> str:
        (tmp_path / "model" / "config.json").write_text(content)
        run_step("deploy", settings, 0, **inputs)
        return weights(cluster)

    registry.set_registered_model_alias("overtaken", "champion", "1")
    first = deploy_now("{}")
    registry.set_registered_model_alias("overtaken", "champion", "2")
    with pytest.raises(InputError, match="no longer the champion of overtaken"):
        deploy_now('{"other": 1}')
    assert weights(cluster) == first
    monkeypatch.delenv("TOOLWISE_RUN")  # by hand
    assert deploy_now('{"other": 1}') != first


def test_without_a_cluster_the_kubeconfig_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"there is no cluster to deploy to: .*KUBECONFIG"):
        InferenceServices("agents")
