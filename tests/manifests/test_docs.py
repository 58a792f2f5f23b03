"""The manifests and commands of the pages fit one another, `k8s/` and the chart."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import toolwise
from pipelines.placement import secret_keys
from tests.manifests.chart import CHART, render, values
from tests.manifests.kustomize import K8S, KUBECTL, built
from tests.manifests.manifests import Document, check, read
from tests.manifests.pods import pods
from tests.manifests.schemas import schema_faults
from toolwise.profile import load_profile
from toolwise.storage import S3_KEYS
from toolwise.tools.search.corpus import read_corpus

PREREQUISITES = K8S / "PREREQUISITES.md"
KUBERNETES = K8S.parent / "docs/kubernetes.md"


def section(page: Path, title: str) -> str:
    text = page.read_text(encoding="utf-8")
    assert f"\n## {title}\n" in text
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def manifests(text: str) -> list[Document]:
    return [d for found in re.findall(r"<<'EOF'\n(.*?)\nEOF", text, re.S) for d in read(found)]


def commands(text: str) -> list[list[str]]:
    """Lines of the console blocks, continued ones as one."""
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", text, re.S))
    return [shlex.split(line) for line in blocks.replace("\\\n", " ").splitlines() if line]


# Prerequisites


def test_gvisor_pods_go_to_the_nodes_that_have_it() -> None:
    text = section(PREREQUISITES, "gVisor")
    [runtime] = manifests(text.partition("kubectl label node")[2])
    assert check([runtime]) == []
    [label] = re.findall(r"^kubectl label node NODE (\S+)$", text, re.M)
    name, _, value = label.partition("=")
    assert runtime["scheduling"]["nodeSelector"] == {name: value}
    # The handler is the runtime's name in both versions of containerd's configuration.
    assert text.count(f".containerd.runtimes.{runtime['handler']}]") == 2


def test_gke_sandbox_keeps_the_runtime_class_that_it_brings() -> None:
    text = section(PREREQUISITES, "gVisor")
    [runtime] = manifests(text.partition("kubectl label node")[2])
    # Of the same name, with a handler that cannot be changed and nodes with labels of their own.
    name = values("values-gpu")["sandbox"]["runtimeClassName"]
    assert name == runtime["metadata"]["name"]
    first = " ".join(text.strip().partition("\n\n")[0].split())
    assert f"skip this section: GKE Sandbox brings its own RuntimeClass `{name}`" in first


def test_the_gateway_serves_https_alone_with_cert_managers_certificate() -> None:
    text = section(PREREQUISITES, "Gateway and Istio")
    issuer, certificate, gateway, *_ = manifests(text)
    assert certificate["spec"]["issuerRef"]["name"] == issuer["metadata"]["name"]
    assert certificate["metadata"]["namespace"] == gateway["metadata"]["namespace"]
    [listener] = gateway["spec"]["listeners"]
    assert listener["protocol"] == "HTTPS"
    assert listener["tls"]["certificateRefs"] == [{"name": certificate["spec"]["secretName"]}]
    assert [listener["hostname"]] == certificate["spec"]["dnsNames"]
    flags = section(PREREQUISITES, "KServe")
    assert "gateway.urlScheme=https" in flags
    assert f"gateway.domain={listener['hostname'].removeprefix('*.')} " in flags
    name = f"{gateway['metadata']['namespace']}/{gateway['metadata']['name']}"
    assert f"kserveGateway={name}" in flags


def test_whoever_makes_the_gateway_lets_requests_in_to_it() -> None:
    """Kubeflow's Istio denies what no policy names, and closes its namespace to everybody else."""
    text = section(PREREQUISITES, "Gateway and Istio")
    # In one command: nobody gets the gateway without them.
    [command] = re.findall(r"kubectl apply -f - <<'EOF'\n(.*?)\nEOF", text, re.S)
    *_, gateway, allowed, opened = read(command)
    named = gateway["metadata"]
    assert allowed["kind"] == "AuthorizationPolicy"
    # A policy holds for Gateways of its own namespace.
    assert allowed["metadata"]["namespace"] == named["namespace"]
    group = gateway["apiVersion"].partition("/")[0]
    target = {"group": group, "kind": gateway["kind"], "name": named["name"]}
    assert allowed["spec"] == {"action": "ALLOW", "targetRefs": [target], "rules": [{}]}
    assert [*schema_faults(opened)] == []
    assert opened["metadata"]["namespace"] == named["namespace"]
    # The label that Istio gives a Gateway's pods, and the port that they listen at.
    labels = {"gateway.networking.k8s.io/gateway-name": named["name"]}
    assert opened["spec"]["podSelector"] == {"matchLabels": labels}
    ports = [{"port": listener["port"]} for listener in gateway["spec"]["listeners"]]
    assert opened["spec"]["ingress"] == [{"ports": ports}]


def test_kubeflow_pipelines_finds_metacontrollers_kinds_when_it_is_applied() -> None:
    lines = commands(section(PREREQUISITES, "Kubeflow Pipelines"))
    kinds, wait, server = lines[:3]
    assert kinds[:4] == ["kubectl", "apply", "--server-side", "-f"]
    assert kinds[4].endswith("/third-party/metacontroller/base/crd.yaml")
    assert wait[:3] == ["kubectl", "wait", "--for=condition=Established"]
    # The one kind of metacontroller of which there is an object.
    assert wait[-1] == "crd/decoratorcontrollers.metacontroller.k8s.io"
    assert server[:4] == ["kubectl", "apply", "--server-side", "-k"]
    version = server[4].partition("?ref=")[2]
    assert f"/pipelines/{version}/manifests/" in kinds[4]


def secret_of_s3() -> dict[str, str]:
    [words] = [w for w in commands(section(PREREQUISITES, "S3")) if "create" in w]
    return dict(
        word.removeprefix("--from-literal=").split("=", 1) for word in words if "literal" in word
    )


def test_a_runs_artifacts_go_to_the_bucket_with_the_keys_that_its_steps_have() -> None:
    text = section(PREREQUISITES, "Kubeflow Pipelines")
    patch = manifests(text)[-1]["data"]
    profile = load_profile("qwen3-vl-8b")
    assert profile.kubeflow is not None
    bucket = str(profile.kubeflow.exchange).removeprefix("s3://").partition("/")[0]
    root = patch["defaultPipelineRoot"]
    assert root.startswith(f"s3://{bucket}/")
    used = (profile.kubeflow.exchange, profile.kubeflow.serving and profile.kubeflow.serving.models)
    assert root not in used
    # As Kubeflow Pipelines reads it: backend/src/v2/config/s3.go
    [store] = yaml.safe_load(patch["providers"])["s3"].values()
    assert store.keys() <= {"endpoint", "credentials", "region", "disableSSL", "forcePathStyle"}
    assert store["endpoint"] == secret_of_s3()["AWS_ENDPOINT_URL_S3"]
    assert store["region"]
    assert store["credentials"] == {"fromEnv": True}
    assert set(S3_KEYS) <= set(secret_keys(profile))


def test_s3_at_another_port_gets_through_with_the_flag_that_the_page_gives() -> None:
    text = section(PREREQUISITES, "S3")
    [port] = re.findall(r"http://minio\.storage\.svc:(\d+)", text)
    [given] = re.findall(r"--set 'networkPolicy\.storagePorts=\{([\d,]+)\}'", text)
    default = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]["storagePorts"]
    assert [int(one) for one in given.split(",")] == [*default, int(port)]


# Signing in


def test_the_page_signs_in_as_the_account_that_the_profile_has() -> None:
    text = section(KUBERNETES, "4. The pipeline")
    [token] = re.findall(r"^export KFP_TOKEN=\$\((.*)\)$", text, re.M)
    words = shlex.split(token)
    [profile] = [d for d in manifests(section(PREREQUISITES, "Kubeflow Pipelines")) if "kind" in d]
    space = profile["metadata"]["name"]
    assert words[:6] == ["kubectl", "-n", space, "create", "token", "default-editor"]
    # The audience that the server asks of a token.
    assert words[words.index("--audience") + 1] == "pipelines.kubeflow.org"
    assert text.index("export KFP_TOKEN") < text.index("make submit-pipeline")
    # The address of the other way, and its user, whom the Profile belongs to.
    [port] = re.findall(r"port-forward svc/istio-ingressgateway (\d+):80", text)
    assert f"KFP_HOST=http://localhost:{port}/pipeline " in text
    assert f"KFP_USERNAME={profile['spec']['owner']['name']} " in text


# The corpus


def test_the_corpuss_example_is_a_line_that_text_search_reads(tmp_path: Path) -> None:
    text = section(KUBERNETES, "3. The corpus")
    [example] = re.findall(r"```json\n(.*?)```", text, re.S)
    (tmp_path / "corpus.jsonl").write_text(example)
    [passage] = read_corpus(tmp_path / "corpus.jsonl")
    assert passage.title == "Anarchism"
    [script] = re.findall(r"python - <<'EOF'\n(.*?)\nEOF", text, re.S)
    compile(script, "corpus", "exec")
    assert {f'"{field}":' in script for field in passage._fields} == {True}
    published = load_profile("qwen3-vl-8b").data.published
    assert published is not None
    assert f"aws s3 cp wikipedia.jsonl {published.corpus} " in text


# A workstation

BUILT_IN = {"", "apps", "networking.k8s.io", "policy", "rbac.authorization.k8s.io"}
INSTALLED = {"kserve-crd": "serving.kserve.io", "kubeflow-trainer": "trainer.kubeflow.org"}
"""API groups of Kubernetes, and those that a chart brings."""


def workstation() -> list[list[str]]:
    return commands(section(KUBERNETES, "A workstation"))


def release() -> list[Document]:
    """What the page's `helm install toolwise` renders to."""
    [line] = [words for words in workstation() if words[:3] == ["helm", "install", "toolwise"]]
    given = values(Path(line[line.index("-f") + 1]).stem)
    name, _, value = line[line.index("--set") + 1].partition("=")
    assert name == "image.registry"
    return render({**given, "image": {"registry": value}})


def test_the_workstation_has_every_kind_when_it_is_applied() -> None:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed; 1.21 or newer builds the overlays")
    lines = workstation()
    [apply] = [i for i, words in enumerate(lines) if words[:2] == ["kubectl", "apply"]]
    assert lines[apply][2:] == ["--server-side", "-k", "k8s/overlays/kind"]
    there = BUILT_IN | {
        INSTALLED[words[2]] for words in lines[:apply] if words[:2] == ["helm", "install"]
    }
    for document in (*built(K8S / "overlays/kind"), *release()):
        assert document["apiVersion"].rpartition("/")[0] in there, document["kind"]


def test_the_workstation_gets_the_secret_and_the_storage_that_the_release_asks_for() -> None:
    [words] = [
        w for w in workstation() if w[:5] == ["kubectl", "-n", "toolwise", "create", "secret"]
    ]
    literals = dict(
        word.removeprefix("--from-literal=").split("=", 1) for word in words if "literal" in word
    )
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": words[6], "namespace": "toolwise"},
        "stringData": literals,
    }
    assert check([*release(), secret]) == []
    [deployment] = [w for w in workstation() if w[3:5] == ["create", "deployment"]]
    [port] = [word.partition("=")[2] for word in deployment if word.startswith("--port=")]
    assert deployment[-2:] == ["-p", port]
    assert literals["AWS_ENDPOINT_URL_S3"] == f"http://{deployment[5]}.{deployment[2]}.svc:{port}"
    [policy] = [
        d["spec"]
        for d in release()
        if (d["kind"], d["metadata"]["name"]) == ("NetworkPolicy", "toolwise-mlflow")
    ]
    everybody = {"namespaceSelector": {}}
    allowed = {p["port"] for r in policy["egress"] if everybody in r["to"] for p in r["ports"]}
    assert int(port) in allowed
    pins = (K8S.parent / "constraints.txt").read_text(encoding="utf-8")
    [image] = [word.rpartition(":")[2] for word in deployment if word.startswith("--image=")]
    assert f"\nmoto=={image}\n" in pins


def test_the_workstations_node_gets_every_image_of_toolwise_that_the_release_runs() -> None:
    loaded = {words[-1] for words in workstation() if words[:3] == ["kind", "load", "docker-image"]}
    run = {c["image"] for d in release() for pod in pods(d) for c in pod.containers}
    assert loaded == {image for image in run if image.startswith("localhost/toolwise/")}
    assert all(image.endswith(f":{toolwise.__version__}") for image in loaded)
    [make] = [words for words in workstation() if words[:2] == ["make", "images"]]
    named = {f"localhost/toolwise/{name}" for name in make[2].partition("=")[2].split()}
    assert named == {image.rpartition(":")[0] for image in loaded}
