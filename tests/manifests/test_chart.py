"""The chart renders, keeps the rules, refuses what it should, and asks for what the code needs."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import boto3
import helm_python as helm
import httpx
import pytest
from moto.server import ThreadedMotoServer
from prometheus_client import REGISTRY
from tenacity import Retrying, stop_after_delay, wait_fixed

from tests.manifests.chart import CHART, OUTSIDE, VALUES, lint, render, values
from tests.manifests.manifests import Document, check
from tests.manifests.operators import PODS
from tests.manifests.pods import Pod, pods
from tests.manifests.references import selects
from toolwise.profile import KubeflowSettings
from toolwise.serving import telemetry
from toolwise.serving.cluster import ClusterSettings
from toolwise.serving.inference_service import inference_service
from toolwise.serving.server import _parser, _settings
from toolwise.serving.settings import ServingSettings
from toolwise.tools.sandbox import SANDBOX_VARIABLE, Isolation

AGENT = {"agent": {"enabled": True, "model": "s3://toolwise/models/metis"}}
EXTERNAL = {
    "mlflow": {
        "database": {
            "bundled": False,
            "external": {
                "host": "pg.example.com",
                "secret": "pg",
                "sslMode": "verify-full",
                "caSecret": "pg-ca",
            },
        }
    }
}
MONITORED = {"monitoring": {"serviceMonitor": True, "labels": {"release": "monitoring"}}}


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Values files given one after the other, as Helm merges them."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            both = isinstance(value, dict) and isinstance(below, dict)
            result[key] = merged(below, value) if both else value
    return result


def the(kind: str, name: str, documents: list[Document]) -> Document:
    [found] = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


@pytest.fixture(scope="module")
def small() -> list[Document]:
    return render(values("values-small"))


# What is rendered


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    "more",
    [{}, AGENT, EXTERNAL, MONITORED],
    ids=["as it is", "agent", "external", "monitored"],
)
def test_every_values_file_lints_renders_and_keeps_the_rules(
    name: str, more: dict[str, Any]
) -> None:
    given = merged(values(name), more)
    assert lint(given) == []
    assert check(render(given), {*OUTSIDE, "Secret/pg", "Secret/pg-ca"}) == []


def test_the_defaults_lint_as_well() -> None:
    assert lint() == []


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("_pods.tpl", "runAsNonRoot: true", "runAsNonroot: true"),
        ("_pods.tpl", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("mlflow.yaml", "targetPort: http", "targetPort: htp"),
        ("sandbox.yaml", "clusterIP: None", "clusterIp: None"),
        ("accounts.yaml", '"sandbox" -', '"sandbx" -'),
        ("agent.yaml", "storageUri:", "storageURI:"),
        ("disruption.yaml", "maxUnavailable: 1", "maxUnavailible: 1"),
        ("monitoring.yaml", "- port: metrics", "- port: metric"),
        ("network.yaml", "- { port: http }", "- { port: htp }"),
        ("postgresql.yaml", "claimName:", "claim:"),
        ("postgresql.yaml", "key: password", "key: pasword"),
        ("postgresql.yaml", "pg_isready, --username", "pg_isready, --user"),
        ("postgresql.yaml", "resource-policy: keep", "resource-polcy: keep"),
        ("postgresql.yaml", "POSTGRES_PASSWORD", "POSTGRES_PASWORD"),
        ("postgresql.yaml", "ReadWriteOnce", "ReadWriteOne"),
        ("mlflow.yaml", "path: /health", "path: /helth"),
        ("mlflow.yaml", "--artifacts-destination", "--artifact-destination"),
        ("mlflow.yaml", "mlflow, db, upgrade", "mlflow, db, update"),
        ("mlflow.yaml", "MLFLOW_SERVER_ENABLE_JOB", "MLFLOW_SERVER_ENABLED_JOB"),
        ("mlflow.yaml", "$(MLFLOW_BACKEND_STORE_URI)", "$(MLFLOW_BACKEND_STORE_URL)"),
        ("_pods.tpl", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_BACKEND_STORE_URL"),
        ("_pods.tpl", '"AWS_ENDPOINT_URL_S3"', '"AWS_ENDPOINT_URL_S"'),
        ("_pods.tpl", "OnRootMismatch", "OnRootMissmatch"),
        ("_pods.tpl", "value: /tmp", "value: /temp"),
        ("_pods.tpl", ":5432/mlflow", ":5433/mlflow"),
        ("sandbox.yaml", "path: /health", "path: /healthx"),
        ("sandbox.yaml", "--workers=", "--worker="),
        ("sandbox.yaml", "toolwise.tools.server", "toolwise.tool.server"),
        ("searxng.yaml", "SEARXNG_SECRET", "SEARXNG_SECRT"),
        ("searxng.yaml", "path: /healthz", "path: /health"),
        ("agent.yaml", "serving.kserve.io/deploymentMode", "serving.kserve.io/deployementMode"),
        ("agent.yaml", "deploymentMode: Standard", "deploymentMode: Standrad"),
        ("agent.yaml", "--request-seconds", "--request-second"),
        ("agent.yaml", "--model_name", "--modelname"),
        ("agent.yaml", "name: huggingface", "name: hugingface"),
        ("agent.yaml", "name: kserve-container", "name: kserve-contaner"),
        ("agent.yaml", "/v2/health/live", "/v2/health/alive"),
        ("agent.yaml", '(list . "mlflow") }}:5000', '(list . "mlflow") }}:5001'),
        ("agent.yaml", "TOOLWISE_SANDBOX", "TOOLWISE_SANDBX"),
        ("disruption.yaml", "component: transformer", "component: transformr"),
        ("monitoring.yaml", "component: transformer", "component: transformr"),
        ("monitoring.yaml", 'grafana_dashboard: "1"', 'grafana_dashbord: "1"'),
        ("monitoring.yaml", "path: /metrics", "path: /metric"),
        ("network.yaml", "component: predictor", "component: predicter"),
        ("network.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress, Egres]"),
        ("network.yaml", "values: [sandbox", "values: [sandbx"),
        ("network.yaml", "169.254.0.0/16", "169.254.0.0/61"),
        ("_network.tpl", "metadata.name: kube-system", "metadata.nam: kube-system"),
        ("_network.tpl", "metadata.name: kube-system", "metadata.name: kube-sytem"),
        ("_network.tpl", "protocol: UDP", "protocol: UPD"),
        ("_network.tpl", "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/jobsetname"),
        ("_network.tpl", "kubeflow.org/v2_component", "kubeflow.org/v2_componet"),
        ("_network.tpl", "kserve.io/inferenceservice", "kserve.io/inferenceservce"),
        ("_network.tpl", "app.kubernetes.io/name: vllm", "app.kubernetes.io/name: vlm"),
        ("_network.tpl", "operator: Exists", "operator: Exist"),
        ("_network.tpl", "169.254.0.0/16", "169.254.0.0/61"),
        ("accounts.yaml", "name: {{ $.Values.storage.secret }}", "name: toolwise-storag"),
        ("accounts.yaml", "resources: [trainjobs]", "resources: [trainjob]"),
        ("accounts.yaml", "[kfp-launcher]", "[kfp-luncher]"),
        ("accounts.yaml", "verbs: [create, get, delete]", "verbs: [create, gte, delete]"),
        ("tests/_test.tpl", "helm.sh/hook: test", "helm.sh/hook: tests"),
        ("tests/searxng.yaml", "import json, ", "import json "),
        ("tests/searxng.yaml", ":8080/search", ":8081/search"),
    ],
)
def test_a_typo_in_a_template_is_caught(file: str, right: str, wrong: str, tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "toolwise")
    template = chart / "templates" / file
    text = template.read_text()
    assert right in text
    template.write_text(text.replace(right, wrong, 1))
    assert check(render(merged(values("values-gpu"), AGENT, MONITORED), chart), OUTSIDE) != []


def test_everything_is_in_the_releases_namespace() -> None:
    documents = render(merged(values("values-gpu"), AGENT, MONITORED))
    assert {document["metadata"].get("namespace") for document in documents} == {"toolwise"}


# Values


def objects(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all objects the values have."""
    yield path
    for name, below in schema.get("properties", {}).items():
        resolved = SCHEMA["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else below
        if resolved.get("additionalProperties") is False:
            yield from objects(resolved, (*path, name))


SCHEMA = json.loads((CHART / "values.schema.json").read_text())


@pytest.mark.parametrize("path", objects(SCHEMA), ids=".".join)
def test_a_typo_in_the_values_is_refused_wherever_it_is(path: tuple[str, ...]) -> None:
    given: dict[str, Any] = {"typo": 1}
    for name in reversed(path):
        given = {name: given}
    refused = merged(values("values-small"), given)
    with pytest.raises(helm.HelmError, match="typo"):
        render(refused)


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Names of the single values; amounts of resources count as one."""
    for name, below in schema.get("properties", {}).items():
        where = f"{path}.{name}".lstrip(".")
        yield from leaves(below, where) if "properties" in below else [where]


def test_the_readmes_table_has_every_value_and_no_other() -> None:
    table = (CHART / "README.md").read_text().partition("## Values")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.M)
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == set(leaves(SCHEMA)) - {"global"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": {"tag": "latest"}},
        {"mlflow": {"image": "ghcr.io/mlflow/mlflow:latest"}},
        {"mlflow": {"image": "ghcr.io/mlflow/mlflow"}},
        {"mlflow": {"artifacts": "/data"}},
        {"mlflow": {"resources": {"limits": {"memory": "3 GB"}}}},
        {"sandbox": {"isolation": "bubblewrap"}},
        {"sandbox": {"replicas": 0}},
        {"networkPolicy": {"storagePorts": []}},
        {"global": {"typo": 1}},
        {"agent": {"replicas": {"min": 0, "max": 1}}},
        merged(AGENT, {"agent": {"replicas": {"min": 3, "max": 1}}}),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        render(merged(values("values-small"), wrong))


def test_a_database_elsewhere_has_to_be_named() -> None:
    given = merged(values("values-small"), {"mlflow": {"database": {"bundled": False}}})
    with pytest.raises(helm.HelmError, match=r"mlflow\.database\.external\.secret"):
        render(given)


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_a_database_whose_certificate_is_verified_needs_a_ca(mode: str) -> None:
    without = {"mlflow": {"database": {"external": {"sslMode": mode, "caSecret": ""}}}}
    with pytest.raises(helm.HelmError, match=r"mlflow\.database\.external\.caSecret"):
        render(merged(values("values-small"), EXTERNAL, without))


def test_whatever_opens_the_database_finds_the_ca_that_libpq_is_told_of() -> None:
    documents = render(merged(values("values-small"), EXTERNAL))
    [mlflow] = pods(the("Deployment", "toolwise-mlflow", documents))
    [volume] = [v for v in mlflow.spec["volumes"] if v.get("secret")]
    assert volume["secret"]["secretName"] == "pg-ca"
    for container in mlflow.containers:
        [told] = [v["value"] for v in container["env"] if v["name"] == "PGSSLROOTCERT"]
        [mount] = [m for m in container["volumeMounts"] if m["name"] == volume["name"]]
        assert told == f"{mount['mountPath']}/ca.crt"


def test_a_model_that_kserve_cannot_read_is_refused() -> None:
    given = merged(values("values-small"), AGENT, {"agent": {"model": "models:/metis/3"}})
    with pytest.raises(helm.HelmError, match=r"agent\.model"):
        render(given)


# The sandbox


def test_the_sandbox_is_refused_without_a_runtime_class() -> None:
    with pytest.raises(helm.HelmError, match=r"sandbox\.runtimeClassName: name the RuntimeClass"):
        render({})


def test_the_sandbox_runs_without_one_only_where_isolation_is_lowered_by_name() -> None:
    [pod] = pods(the("Deployment", "toolwise-sandbox", render({"sandbox": {"isolation": "none"}})))
    assert "runtimeClassName" not in pod.spec
    named = {"sandbox": {"runtimeClassName": "gvisor"}}
    [pod] = pods(the("Deployment", "toolwise-sandbox", render(named)))
    assert pod.spec["runtimeClassName"] == "gvisor"
    with pytest.raises(helm.HelmError, match="isolation is none, yet"):
        render(merged(named, {"sandbox": {"isolation": "none"}}))


def policies(pod: Pod, documents: list[Document]) -> list[Document]:
    return [
        document["spec"]
        for document in documents
        if document["kind"] == "NetworkPolicy"
        and selects(document["spec"]["podSelector"], pod.labels)
    ]


def test_steps_get_in_from_the_releases_namespace_and_from_those_that_are_named() -> None:
    named = {"networkPolicy": {"clientNamespaces": ["team-a", "team-b"]}}
    documents = render(merged(values("values-gpu"), named))
    step = {"pipelines.kubeflow.org/v2_component": "true"}
    for part in ("mlflow", "sandbox", "searxng", "agent"):
        policy = the("NetworkPolicy", f"toolwise-{part}", documents)["spec"]
        [rule] = policy["ingress"]
        others = {
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for peer in rule["from"]
            # With a podSelector beside it only some of the namespace's pods would get in.
            if "namespaceSelector" in peer and "podSelector" not in peer
        }
        assert {"team-a", "team-b"} <= others, part
        assert "kubeflow" not in others, part
        here = [peer["podSelector"] for peer in rule["from"] if "namespaceSelector" not in peer]
        assert any(selects(selector, step) for selector in here), part


def test_a_model_is_reached_by_agents_alone_and_an_agent_by_the_gateway_too() -> None:
    documents = render(merged(values("values-gpu"), AGENT))
    found = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    service = {"serving.kserve.io/inferenceservice": "metis"}
    agent, model = ({**service, "component": part} for part in ("transformer", "predictor"))
    step = {"pipelines.kubeflow.org/v2_component": "true"}

    def peers(pod: dict[str, str]) -> list[Document]:
        return [
            peer
            for policy in found
            if selects(policy["podSelector"], pod)
            for rule in policy.get("ingress", ())
            for peer in rule["from"]
        ]

    def let_in(pod: dict[str, str], other: dict[str, str]) -> bool:
        return any(
            selects(peer["podSelector"], other) for peer in peers(pod) if "podSelector" in peer
        )

    def spaces(pod: dict[str, str]) -> set[str]:
        return {
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for peer in peers(pod)
            if "namespaceSelector" in peer
        }

    assert let_in(model, agent)
    assert not let_in(model, model)
    assert not let_in(model, step)
    assert spaces(model) == set()
    assert let_in(agent, step)
    assert {"istio-system", "monitoring"} <= spaces(agent)


SHARED = {"networkPolicy": {"wholeNamespace": False}}


@pytest.mark.parametrize("shared", [{}, SHARED], ids=["its own namespace", "shared"])
def test_the_sandbox_reaches_nothing_and_every_other_pod_only_what_is_named(
    small: list[Document], shared: dict[str, Any]
) -> None:
    documents = render(merged(values("values-gpu"), AGENT, shared))
    for document in documents:
        for pod in pods(document):
            applying = policies(pod, documents)
            sides = {side for policy in applying for side in policy["policyTypes"]}
            assert sides == {"Ingress", "Egress"}, pod.owner
            ways_out = [rule for policy in applying for rule in policy.get("egress", ())]
            assert {} not in ways_out, pod.owner
            if pod.owner == "Deployment toolwise-sandbox":
                assert ways_out == []
    [pod] = pods(the("Deployment", "toolwise-sandbox", small))
    assert pod.spec["automountServiceAccountToken"] is False
    assert "env" not in pod.spec["containers"][0]


def reaches(pod: Pod, address: str, port: int, documents: list[Document]) -> bool:
    """Whether a policy lets a pod out to an address that is no pod's."""

    def named(peer: Document) -> bool:
        if "ipBlock" not in peer:
            return False
        block, *left_out = [
            ip_network(b) for b in (peer["ipBlock"]["cidr"], *peer["ipBlock"].get("except", ()))
        ]
        return ip_address(address) in block and not any(ip_address(address) in b for b in left_out)

    return any(
        port in [p["port"] for p in rule["ports"]]
        and ("to" not in rule or any(named(peer) for peer in rule["to"]))
        for policy in policies(pod, documents)
        for rule in policy.get("egress", ())
    )


def test_agents_models_and_mlflow_reach_s3_and_the_web_but_no_metadata_service() -> None:
    given = merged(values("values-gpu"), AGENT, {"networkPolicy": {"storagePorts": [443, 9000]}})
    documents = render(given)
    asked_for = render(merged(given, {"networkPolicy": {"metadataService": True}}))
    made = [pod for document in documents for pod in pods(document)]
    out = [p for p in made if p.owner == "Deployment toolwise-mlflow"]
    out += [p for p in PODS if p.owner.startswith("KServe")]
    assert len(out) > 2
    for pod in out:
        for public in ("192.0.2.1", "10.1.2.3", "2001:db8::1"):
            assert reaches(pod, public, 443, documents), pod.owner
            assert reaches(pod, public, 9000, documents), pod.owner
        for metadata in ("169.254.169.254", "169.254.170.23", "fd00:ec2::254", "fd20:ce::254"):
            for port in (80, 443, 9000):
                assert not reaches(pod, metadata, port, documents), pod.owner
            assert reaches(pod, metadata, 443, asked_for), pod.owner
        # An S3 server in a pod: some network plugins hold no block against the address of a pod.
        rules = [r for policy in policies(pod, documents) for r in policy.get("egress", ())]
        anywhere = [r for r in rules if {"namespaceSelector": {}} in r.get("to", ())]
        assert 9000 in {p["port"] for r in anywhere for p in r["ports"]}, pod.owner


def test_in_a_namespace_that_is_shared_the_pods_of_others_are_left_alone() -> None:
    # https://github.com/kubeflow/pipelines: a server for one user, in the namespace of its runs
    labels = {"app": "ml-pipeline", "application-crd-id": "kubeflow-pipelines"}
    other = Pod("Deployment ml-pipeline", "toolwise", labels, {}, True)
    given = merged(values("values-gpu"), AGENT)
    assert [policy["podSelector"] for policy in policies(other, render(given))] == [{}]
    assert policies(other, render(merged(given, SHARED))) == []


def test_every_pod_finds_names_but_for_sandbox_and_database() -> None:
    documents = render(merged(values("values-gpu"), AGENT, SHARED))
    made = [pod for document in documents for pod in pods(document)]
    for pod in [*made, *(pod for pod in PODS if pod.owner.startswith("KServe"))]:
        ways_out = [r for policy in policies(pod, documents) for r in policy.get("egress", ())]
        finds = any(port["port"] == 53 for rule in ways_out for port in rule["ports"])
        unknowing = ("Deployment toolwise-sandbox", "StatefulSet toolwise-postgresql")
        assert finds == (pod.owner not in unknowing), pod.owner


# What `helm test` asks the sandbox

ASK = CHART / "files" / "ask_sandbox.py"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[str]:
    """A sandbox server that keeps nothing from the network: isolation `none`, no policies."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    arguments = ["--port", str(port), "--isolation", "none", "--workers", "1"]
    with subprocess.Popen([sys.executable, "-m", "toolwise.tools.server", *arguments]) as server:
        for attempt in Retrying(stop=stop_after_delay(120), wait=wait_fixed(0.2), reraise=True):
            with attempt:
                httpx.get(f"http://127.0.0.1:{port}/health")
        yield f"127.0.0.1:{port}"
        server.terminate()


def asked(sandbox: str, lowest: str, *targets: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ASK), f"http://{sandbox}", lowest, *targets]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_sandboxs_test_passes_where_code_runs(sandbox: str) -> None:
    done = asked(sandbox, "none")
    assert (done.returncode, done.stdout) == (0, "isolation: none\n"), done.stderr


def test_the_sandboxs_test_fails_where_isolation_is_too_weak(sandbox: str) -> None:
    done = asked(sandbox, "gvisor")
    assert done.returncode == 1
    assert "that is weaker than gvisor" in done.stderr


def test_the_sandboxs_test_fails_where_code_reaches_something(sandbox: str) -> None:
    done = asked(sandbox, "none", sandbox)
    assert done.returncode == 1
    assert f"code in the sandbox must not reach {sandbox}" in done.stderr


# What `helm test` asks MLflow


def test_mlflows_test_passes_with_s3_and_fails_without(
    small: list[Document], tmp_path: Path
) -> None:
    [pod] = pods(the("Pod", "toolwise-test-mlflow", small))
    [container] = pod.containers
    *command, told = container["command"]
    assert (command[:2], told) == (["python", "-c"], "http://toolwise-mlflow:5000")
    [mlflow] = pods(the("Deployment", "toolwise-mlflow", small))
    [destination] = [a for a in mlflow.spec["containers"][0]["args"] if "artifacts-d" in a]
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    keys = {"AWS_ACCESS_KEY_ID": "toolwise", "AWS_SECRET_ACCESS_KEY": "toolwise"}
    host, port = s3.get_host_and_port()
    environment = {**os.environ, **keys, "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}
    boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        region_name="us-east-1",
        aws_access_key_id="toolwise",
        aws_secret_access_key="toolwise",
    ).create_bucket(Bucket="toolwise")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    arguments = ["--port", url.rpartition(":")[2], "--workers=1", f"--backend-store-uri={store}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, destination],
        env={**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command[1:], url], capture_output=True, text=True, timeout=120
        )

    try:
        for attempt in Retrying(stop=stop_after_delay(240), wait=wait_fixed(0.5), reraise=True):
            with attempt:
                httpx.get(f"{url}/health").raise_for_status()
        done = ask()
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("/artifacts {}\n")
        s3.stop()
        done = ask()
        assert done.returncode == 1
        assert "MLflow cannot list its artifacts" in done.stderr
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


# What the code needs


def test_the_pipelines_account_has_exactly_the_rights_its_code_uses(small: list[Document]) -> None:
    granted = {
        (group, resource, verb)
        for rule in the("Role", "toolwise-pipeline", small)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    training = {("trainer.kubeflow.org", "trainjobs", verb) for verb in ("create", "get", "delete")}
    training |= {("apps", "deployments", "create"), ("", "services", "create")}
    training |= {("", "pods", "list"), ("", "pods/log", "get")}
    serving = {
        ("serving.kserve.io", "inferenceservices", verb)
        for verb in ("get", "create", "patch", "delete")
    } | {("apps", "deployments", "get")}
    serving |= {("", "configmaps", verb) for verb in ("get", "create", "patch")}
    kubeflow = {("argoproj.io", "workflowtaskresults", verb) for verb in ("create", "patch")}
    kubeflow |= {("", "secrets", "get")}
    assert granted == training | serving | kubeflow
    assert not any(document["kind"] == "ClusterRole" for document in small)


def test_names_are_the_ones_the_code_and_the_profiles_use(small: list[Document]) -> None:
    assert {"toolwise-mlflow", "toolwise-sandbox"} <= {
        d["metadata"]["name"] for d in small if d["kind"] == "Service"
    }
    [mlflow] = pods(the("Deployment", "toolwise-mlflow", small))
    secrets = {
        variable["valueFrom"]["secretKeyRef"]["name"]
        for variable in mlflow.spec["containers"][0]["env"]
        if variable["name"].startswith("AWS_")
    }
    assert secrets == {KubeflowSettings.model_fields["secret"].default}
    [hosts] = [a for a in mlflow.spec["containers"][0]["args"] if "allowed-hosts" in a]
    assert "toolwise-mlflow.toolwise.svc:*" in hosts.split(",")


def test_the_agent_is_the_one_the_pipeline_deploys() -> None:
    search = {"searxng": {"enabled": True}, "sandbox": {"runtimeClassName": "gvisor"}}
    service = the("InferenceService", "assistant", render(merged(AGENT, search)))
    serving = ServingSettings(name="assistant", isolation=Isolation.GVISOR, max_tokens=4096)
    cluster = ClusterSettings(namespace="toolwise", image="ghcr.io/toolwise/agent:0.1.0")
    built = inference_service(serving, cluster, AGENT["agent"]["model"], None)
    for part in ("predictor", "transformer"):
        assert service["spec"][part]["timeout"] == built["spec"][part]["timeout"], part
    ours, theirs = (s["spec"]["predictor"]["model"] for s in (service, built))
    for field in ("modelFormat", "runtime", "storageUri", "args", "resources"):
        assert ours[field] == theirs[field], field
    ours, theirs = (s["spec"]["transformer"] for s in (service, built))
    assert ours["runtimeClassName"] == theirs["runtimeClassName"]
    [container], [deployed] = ours["containers"], theirs["containers"]
    assert ours["terminationGracePeriodSeconds"] == theirs["terminationGracePeriodSeconds"]
    for field in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        assert container[field] == deployed[field], field
    added = ["--model_name=assistant", "--predictor_host=assistant-predictor.toolwise"]
    options = _settings(_parser().parse_args([*container["args"], *added, "--http_port=8080"]))
    assert options.search is not None
    expected = {"host": "0.0.0.0", "search": options.search}
    assert options == serving.model_copy(update=expected)
    [sandbox] = [v["value"] for v in container["env"] if v["name"] == SANDBOX_VARIABLE]
    assert sandbox == "http://toolwise-sandbox:8080"


def test_the_agent_asks_for_keys_and_traces_where_it_is_told_to() -> None:
    more = {"agent": {"keysSecret": "keys", "traceShare": 0.05}}
    documents = render(merged(values("values-small"), AGENT, more))
    assert check(documents, {*OUTSIDE, "Secret/keys"}) == []
    transformer = the("InferenceService", "assistant", documents)["spec"]["transformer"]
    [container] = transformer["containers"]
    added = ["--model_name=assistant", "--predictor_host=assistant-predictor", "--http_port=8080"]
    options = _settings(_parser().parse_args([*container["args"], *added]))
    assert options.trace_share == 0.05
    assert options.keys is not None
    [mount] = [m for m in container["volumeMounts"] if m["mountPath"] == str(options.keys.parent)]
    [volume] = [v for v in transformer["volumes"] if v["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "keys"


def notes(given: dict[str, Any]) -> str:
    files = helm.Chart.load(CHART).render(given, name="toolwise", namespace="toolwise")
    [text] = [text for name, text in files.items() if name.endswith("NOTES.txt")]
    return text


def test_the_notes_submit_with_the_registry_and_the_tag_that_the_release_pulls() -> None:
    given = values("values-small")
    assert "make submit-pipeline PROFILE=qwen3-vl-8b\n" in notes(given)
    registry = "registry.example.com/toolwise"
    said = notes(merged(given, {"image": {"registry": registry}}))
    assert f"make submit-pipeline PROFILE=qwen3-vl-8b REGISTRY={registry}\n" in said
    said = notes(merged(given, {"image": {"registry": registry, "tag": "20260926"}}))
    assert f"PROFILE=qwen3-vl-8b REGISTRY={registry} TAG=20260926\n" in said


def test_the_notes_name_the_ports_that_the_policies_open_to_s3() -> None:
    given = merged(values("values-gpu"), {"networkPolicy": {"storagePorts": [443, 9443]}})
    assert "at these ports alone: 443, 9443." in notes(given)
    given = merged(given, {"networkPolicy": {"enabled": False}})
    assert "storagePorts" not in notes(given)


def test_the_pods_of_helm_test_stay_until_their_logs_are_read(small: list[Document]) -> None:
    # Helm 3 reads the logs of `helm test --logs` last, and fails where the pods are gone.
    tests = [d for d in small if "helm.sh/hook" in d["metadata"].get("annotations", {})]
    assert len(tests) == 2
    for document in tests:
        annotations = document["metadata"]["annotations"]
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation"


def test_no_port_is_named_twice_in_a_rule() -> None:
    ports = {"networkPolicy": {"storagePorts": [443, 9000]}}
    for document in render(merged(values("values-gpu"), AGENT, ports)):
        if document["kind"] == "NetworkPolicy":
            for side in ("ingress", "egress"):
                for rule in document["spec"].get(side, ()):
                    named = [(p["port"], p.get("protocol")) for p in rule.get("ports", ())]
                    assert len(named) == len(set(named)), document["metadata"]["name"]


def test_the_dashboard_asks_for_metrics_the_agent_exports() -> None:
    assert telemetry.TOOL_CALLS is not None
    exported = {
        name
        for metric in REGISTRY.collect()
        if metric.name.startswith("toolwise_")
        for name in (
            [f"{metric.name}_total"]
            if metric.type == "counter"
            else [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
            if metric.type == "histogram"
            else [metric.name]
        )
    }
    dashboard = (CHART / "files" / "dashboard.json").read_text()
    asked = set(re.findall(r"\btoolwise_\w+", dashboard))
    assert len(asked) >= 9
    assert asked <= exported


# An upgrade keeps data


def test_a_larger_volume_changes_the_claim_alone(small: list[Document]) -> None:
    larger = {"mlflow": {"database": {"storage": "50Gi"}}}
    after = render(merged(values("values-small"), larger))
    claim = the("PersistentVolumeClaim", "toolwise-postgresql", after)
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"
    # Kubernetes refuses a change of most of a StatefulSet.
    sets = [the("StatefulSet", "toolwise-postgresql", d)["spec"] for d in (small, after)]
    assert sets[0] == sets[1]


def test_the_data_and_its_password_outlive_the_release(small: list[Document]) -> None:
    for kind in ("PersistentVolumeClaim", "Secret"):
        annotations = the(kind, "toolwise-postgresql", small)["metadata"]["annotations"]
        assert annotations["helm.sh/resource-policy"] == "keep"


def test_a_new_version_of_the_chart_alone_restarts_no_pod(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "toolwise")
    metadata = chart / "Chart.yaml"
    metadata.write_text(metadata.read_text().replace("\nversion: 0.1.0", "\nversion: 0.2.0"))
    given = merged(values("values-small"), AGENT)
    before, after = render(given), render(given, chart)
    assert before != after
    for kind in ("Deployment", "StatefulSet"):
        templates = [d["spec"]["template"] for d in before if d["kind"] == kind]
        assert templates == [d["spec"]["template"] for d in after if d["kind"] == kind]
    agents = [the("InferenceService", "assistant", documents) for documents in (before, after)]
    assert [*pods(agents[0])] == [*pods(agents[1])]


def test_the_selectors_do_not_change_with_the_version(
    small: list[Document], tmp_path: Path
) -> None:
    chart = shutil.copytree(CHART, tmp_path / "toolwise")
    metadata = chart / "Chart.yaml"
    metadata.write_text(metadata.read_text().replace("ersion: 0.1.0", "ersion: 0.2.0"))
    after = render(values("values-small"), chart)
    assert after != small
    for kind in ("Deployment", "StatefulSet"):
        before = [copy.deepcopy(d["spec"]["selector"]) for d in small if d["kind"] == kind]
        assert before == [d["spec"]["selector"] for d in after if d["kind"] == kind]
