"""A preflight names each thing the cluster lacks, with the command that mends it."""

import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml
from cluster_server import ClusterServer, World
from rich.console import Console
from typer.testing import CliRunner

from pipelines.preflight import Finding, Unreachable, check, print_findings
from pipelines.preflight.checks import HELM, RELEASE
from pipelines.preflight.images import Image, Login, login_at, logins_of, look_up
from toolwise.cli import app
from toolwise.profile import Profile, load_profile
from toolwise.tools.sandbox import Isolation

ROOT = Path(__file__).parents[2]
STORAGE = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
TRAINER = "trainer.kubeflow.org/v1alpha1"
KSERVE = "serving.kserve.io/v1beta1"
IMAGES = ("operator", "trainer", "agent")


def everything(address: str) -> World:
    """A cluster that has all that the profile `qwen3-vl-8b` needs."""
    claim = {"persistentVolumeClaim": {"claimName": "training"}}
    pod = {"template": {"spec": {"template": {"spec": {"volumes": [{"name": "v", **claim}]}}}}}
    node = {
        "metadata": {"name": "n1", "labels": {"gpu": "h100"}},
        "spec": {},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8", "cpu": "95900m", "memory": "1056Gi"},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": "True"},
            ],
        },
    }
    space = "/api/v1/namespaces/toolwise"
    world = World(
        resources={
            "kubeflow.org/v1": ["profiles"],
            TRAINER: ["trainjobs", "clustertrainingruntimes"],
            KSERVE: ["inferenceservices"],
        },
        objects={
            space: {},
            f"{space}/services/toolwise-mlflow": {},
            f"{space}/services/toolwise-sandbox": {},
            f"{space}/serviceaccounts/toolwise-pipeline": {},
            f"{space}/serviceaccounts/toolwise-models": {},
            f"{space}/persistentvolumeclaims/training": {
                "spec": {"storageClassName": "fast"},
                "status": {"phase": "Bound"},
            },
            f"/apis/{TRAINER}/clustertrainingruntimes/toolwise-torch": {
                "spec": {"template": {"spec": {"replicatedJobs": [pod]}}}
            },
            "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/kserve-huggingfaceserver": {},
            "/apis/node.k8s.io/v1/runtimeclasses/gvisor": {},
            "/api/v1/nodes": {"items": [node]},
        },
        buckets={"toolwise", "toolwise/corpora/wikipedia.jsonl"},
        images={f"toolwise/{name}:0.1.0" for name in IMAGES},
    )
    world.add_secret(
        "toolwise", "toolwise-storage", **STORAGE, AWS_ENDPOINT_URL_S3=f"http://{address}"
    )
    return world


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterServer]:
    started = ClusterServer(World())
    monkeypatch.setenv("KUBECONFIG", str(started.kubeconfig(tmp_path / "kubeconfig")))
    for name in ("KFP_NAMESPACE", "KFP_SERVER_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    yield started
    started.close()


def profile_at(server: ClusterServer, **kubeflow: Any) -> Profile:
    """The profile `qwen3-vl-8b`, its images at the server's registry."""
    content = load_profile("qwen3-vl-8b").model_dump(mode="json")
    own = content["kubeflow"]
    for name in ("image", "operator_image"):
        own[name] = own[name].replace("ghcr.io", server.address)
    own["serving"]["image"] = own["serving"]["image"].replace("ghcr.io", server.address)
    content["kubeflow"] = own | kubeflow
    return Profile.model_validate(content)


def lacking(findings: list[Finding]) -> dict[str, str]:
    """What is missing, and the commands that mend it."""
    return {one.what: one.mend for one in findings if one.verdict == "missing"}


def test_a_cluster_that_has_everything_lacks_nothing(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    findings = check(profile_at(server))
    assert {one.verdict for one in findings} == {"there"}, findings
    assert "8 on 1 nodes" in [one.why for one in findings]
    accounts = {review["user"] for review in server.world.reviewed}
    assert accounts == {"system:serviceaccount:toolwise:toolwise-pipeline"}
    reviewed = [review["resourceAttributes"] for review in server.world.reviewed]
    assert {
        "namespace": "toolwise",
        "verb": "get",
        "resource": "pods",
        "subresource": "log",
    } in reviewed


Change = Callable[[World], object]
SPACE = "/api/v1/namespaces/toolwise"


def without(path: str) -> Change:
    return lambda world: world.objects.pop(path)


@pytest.mark.parametrize(
    ("change", "what", "mend"),
    [
        (
            lambda w: w.resources.pop(TRAINER),
            "Kubeflow Trainer (TrainJob)",
            "helm install kubeflow-trainer oci://ghcr.io/kubeflow/charts/kubeflow-trainer",
        ),
        (
            without(f"/apis/{TRAINER}/clustertrainingruntimes/toolwise-torch"),
            "ClusterTrainingRuntime toolwise-torch",
            "kubectl apply --server-side -k k8s/overlays/gpu",
        ),
        (
            lambda w: w.resources.pop(KSERVE),
            "KServe (InferenceService)",
            "helm install kserve-crd oci://ghcr.io/kserve/charts/kserve-crd --version v0.21.0",
        ),
        (
            without(f"{SPACE}/persistentvolumeclaims/training"),
            "volume claim training in toolwise",
            "kubectl apply --server-side -k k8s/overlays/gpu",
        ),
        (
            without(f"{SPACE}/services/toolwise-mlflow"),
            "MLflow: service toolwise-mlflow",
            "helm upgrade toolwise charts/toolwise -n toolwise --reset-then-reuse-values",
        ),
        (
            without(f"{SPACE}/secrets/toolwise-storage"),
            "secret toolwise-storage in toolwise",
            "create secret generic toolwise-storage --namespace toolwise "
            "--from-literal=AWS_ACCESS_KEY_ID=…",
        ),
        (
            lambda w: w.add_secret("toolwise", "toolwise-storage", **STORAGE),
            "secret toolwise-storage in toolwise",
            "kubectl apply -f -",
        ),
        (
            without(f"{SPACE}/serviceaccounts/toolwise-models"),
            "service account toolwise-models in toolwise",
            "helm upgrade toolwise charts/toolwise -n toolwise --reset-then-reuse-values",
        ),
        (
            lambda w: w.objects["/api/v1/nodes"]["items"][0]["status"].clear(),
            "1 × 8 nvidia.com/gpu",
            "helm install gpu-operator",
        ),
        (
            lambda w: w.objects["/api/v1/nodes"]["items"][0]["status"].update(
                allocatable={"nvidia.com/gpu": "4"}
            ),
            "1 × 8 nvidia.com/gpu",
            "kubectl describe nodes",
        ),
        (
            lambda w: w.buckets.clear(),
            "bucket toolwise",
            "aws s3 mb s3://toolwise --endpoint-url http://127.0.0.1",
        ),
        (
            lambda w: w.buckets.remove("toolwise/corpora/wikipedia.jsonl"),
            "corpus s3://toolwise/corpora/wikipedia.jsonl",
            "aws s3 cp wikipedia.jsonl s3://toolwise/corpora/wikipedia.jsonl --endpoint-url http://",
        ),
        (
            lambda w: w.images.remove("toolwise/agent:0.1.0"),
            "image {address}/toolwise/agent:0.1.0",
            "make images IMAGES=agent REGISTRY={address}/toolwise TAG=0.1.0 PUSH=1",
        ),
    ],
)
def test_each_missing_thing_is_named_with_the_command_that_mends_it(
    server: ClusterServer, change: Change, what: str, mend: str
):
    server.world.__dict__.update(everything(server.address).__dict__)
    change(server.world)
    found = lacking(check(profile_at(server)))
    named = what.format(address=server.address)
    assert mend.format(address=server.address) in found[named]


def without_chart(world: World) -> None:
    for name in RELEASE:
        del world.objects[f"{SPACE}/{name}"]


@pytest.mark.parametrize(("tag", "option"), [("0.1.0", ""), ("7", " --set-string image.tag=7")])
def test_a_chart_that_is_not_there_is_installed_with_the_profiles_registry_and_tag(
    server: ClusterServer, tag: str, option: str
):
    server.world.__dict__.update(everything(server.address).__dict__)
    without_chart(server.world)
    image = f"{server.address}/toolwise/trainer:{tag}"
    found = lacking(check(profile_at(server, image=image)))
    assert found["MLflow: service toolwise-mlflow"] == (
        "helm upgrade --install toolwise charts/toolwise --namespace toolwise --create-namespace "
        f"-f charts/toolwise/values-gpu.yaml --set image.registry={server.address}/toolwise{option}"
    )


def rendered(command: str) -> list[dict[str, Any]]:
    """What Helm makes of the chart with the options of a command that installs it."""
    words = shlex.split(command)
    given = yaml.safe_load((ROOT / words[words.index("-f") + 1]).read_text())
    for option, text in pairwise(words):
        if option == "--set":
            path, _, value = text.partition("=")
            *above, last = path.split(".")
            inner = given
            for part in above:
                inner = inner.setdefault(part, {})
            inner[last] = value[1:-1].split(",") if value.startswith("{") else value
    made = helm.Chart.load(ROOT / words[4]).render(given, name=words[3], namespace="toolwise")
    texts = [text for file, text in made.items() if file.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def sandbox_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The sandbox's pod."""
    name = "toolwise-sandbox"
    [found] = [
        one for one in documents if (one["kind"], one["metadata"]["name"]) == ("Deployment", name)
    ]
    return found["spec"]["template"]["spec"]


def test_the_chart_is_installed_with_the_profiles_pull_secret(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    without_chart(server.world)
    server.world.add_secret("toolwise", "regcred", **{".dockerconfigjson": '{"auths": {}}'})
    found = lacking(check(profile_at(server, image_pull_secret="regcred")))
    pod = sandbox_of(rendered(found["sandbox: service toolwise-sandbox"]))
    assert pod["imagePullSecrets"] == [{"name": "regcred"}]


def isolated(profile: Profile, level: Isolation, *others: str) -> Profile:
    """The profile with this isolation in all sections but `others`."""
    changed = {
        name: getattr(profile, name).model_copy(update={"isolation": level})
        for name in profile.isolation
        if name not in others
    }
    return profile.model_copy(update=changed)


@pytest.mark.parametrize(
    ("stronger", "given"), [((), None), (("serve",), "gvisor"), (("curate_sft",), "gvisor")]
)
def test_the_chart_is_installed_without_gvisor_where_the_profile_asks_for_no_isolation(
    server: ClusterServer, stronger: tuple[str, ...], given: str | None
):
    server.world.__dict__.update(everything(server.address).__dict__)
    without_chart(server.world)
    profile = isolated(profile_at(server), Isolation.NONE, *stronger)
    install = lacking(check(profile))["sandbox: service toolwise-sandbox"]
    assert sandbox_of(rendered(install)).get("runtimeClassName") == given
    page = (ROOT / "docs/kubernetes.md").read_text()
    options = re.search(r"`(--set sandbox\.isolation=none .*?)`", page)
    assert options is not None
    assert (options[1] in install) == (given is None)


def test_the_chart_is_installed_with_gvisors_runtime_class_by_the_profiles_name(
    server: ClusterServer,
):
    server.world.__dict__.update(everything(server.address).__dict__)
    without_chart(server.world)
    profile = profile_at(server)
    assert profile.kubeflow is not None
    serving = profile.kubeflow.serving.model_dump(mode="json") | {"runtime_class": "runsc"}
    found = lacking(check(profile_at(server, serving=serving)))
    pod = sandbox_of(rendered(found["sandbox: service toolwise-sandbox"]))
    assert pod["runtimeClassName"] == "runsc"


def test_the_page_names_every_section_whose_isolation_is_lowered():
    page = " ".join((ROOT / "docs/kubernetes.md").read_text().split())
    told = page.partition("On a GPU cluster without gVisor")[2].partition("## 3.")[0]
    for name in ("qwen3-vl-2b", "qwen3-vl-8b"):
        assert {f"`{section}`" for section in load_profile(name).isolation} <= {
            *re.findall(r"`\w+`", told)
        }


def test_a_release_that_is_there_is_upgraded_as_the_charts_readme_does(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    server.world.rights = set()
    mend = lacking(check(profile_at(server)))["rights of toolwise-pipeline"]
    assert f"\n{mend}\n" in (ROOT / "charts/toolwise/README.md").read_text()


def test_a_release_is_known_by_objects_that_the_chart_makes():
    text = (ROOT / "charts/toolwise/values-small.yaml").read_text()
    made = helm.Chart.load(ROOT / "charts/toolwise").render(
        yaml.safe_load(text), name="toolwise", namespace="toolwise"
    )
    names = {
        f"{one['kind'].lower()}s/{one['metadata']['name']}"
        for file, text in made.items()
        if file.endswith(".yaml")
        for one in yaml.safe_load_all(text)
        if one
    }
    assert names >= {*RELEASE}


def test_the_chart_installs_as_the_command_says():
    words = shlex.split(HELM.format(namespace="toolwise"))
    chart, values = ROOT / words[4], ROOT / words[words.index("-f") + 1]
    given = yaml.safe_load(values.read_text())
    assert helm.Chart.load(chart).render(given, name=words[3], namespace="toolwise")
    with pytest.raises(helm.HelmError, match="runtimeClassName"):
        helm.Chart.load(chart).render({}, name=words[3], namespace="toolwise")


@pytest.mark.parametrize(
    ("change", "what", "section"),
    [
        (lambda w: w.resources.pop(KSERVE), "KServe (InferenceService)", "KServe"),
        (lambda w: w.resources.pop(TRAINER), "Kubeflow Trainer (TrainJob)", "Kubeflow Trainer"),
        (
            lambda w: w.objects["/api/v1/nodes"]["items"][0]["status"].clear(),
            "1 × 8 nvidia.com/gpu",
            "GPUs",
        ),
    ],
)
def test_what_others_make_is_installed_as_the_prerequisites_do(
    server: ClusterServer, change: Change, what: str, section: str
):
    server.world.__dict__.update(everything(server.address).__dict__)
    change(server.world)
    commands = lacking(check(profile_at(server)))[what].split(" && ")
    page = (ROOT / "k8s/PREREQUISITES.md").read_text().replace("\\\n", " ")
    told = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    block = re.search(r"```console\n(.*?)```", told, re.DOTALL)
    assert block is not None
    installing = [line for line in block[1].splitlines() if line.startswith("helm ")]
    assert [shlex.split(command) for command in commands] == [*map(shlex.split, installing)]


def test_one_question_that_is_not_answered_leaves_the_others(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    server.world.broken = (f"/apis/{TRAINER}",)
    del server.world.objects[f"{SPACE}/secrets/toolwise-storage"]
    findings = check(profile_at(server))
    assert list(lacking(findings)) == ["secret toolwise-storage in toolwise"]
    unknown = {one.what: one.why for one in findings if one.verdict == "unknown"}
    assert unknown["trainer"] == f"Kubernetes at http://{server.address} answers 503"


def test_a_cluster_that_does_not_know_us_is_not_asked_further(server: ClusterServer):
    server.world.token = "another"
    with pytest.raises(Unreachable, match=r"does not know us(.|\n)*401"):
        check(profile_at(server))


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("status", {"conditions": [{"type": "Ready", "status": "Unknown"}]}, "is not ready"),
        ("spec", {"unschedulable": True}, "cordoned"),
        (
            "spec",
            {"taints": [{"key": "team", "value": "b", "effect": "NoSchedule"}]},
            "n1 has the taint team=b:NoSchedule",
        ),
        (
            "status",
            {"allocatable": {"nvidia.com/gpu": "8", "cpu": "16", "memory": "999Gi"}},
            "n1 has less cpu than kubeflow.cpu",
        ),
        (
            "status",
            {"allocatable": {"nvidia.com/gpu": "8", "cpu": "96", "memory": "64Gi"}},
            "n1 has less memory than kubeflow.memory",
        ),
    ],
)
def test_a_node_on_which_no_pod_of_the_profile_runs_is_none(
    server: ClusterServer, part: str, change: dict[str, Any], why: str
):
    server.world.__dict__.update(everything(server.address).__dict__)
    server.world.objects["/api/v1/nodes"]["items"][0][part].update(change)
    found = [one for one in check(profile_at(server)) if one.verdict == "missing"]
    assert [one.what for one in found] == ["1 × 8 nvidia.com/gpu"]
    assert found[0].why.startswith("there are 0 on 0 nodes; ")
    assert why in found[0].why


def test_a_taint_that_is_tolerated_or_only_preferred_keeps_no_pod_off(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    server.world.objects["/api/v1/nodes"]["items"][0]["spec"]["taints"] = [
        {"key": "team", "value": "b", "effect": "NoSchedule"},
        {"key": "slow", "effect": "PreferNoSchedule"},
    ]
    own = {"key": "team", "operator": "Equal", "value": "b"}
    assert lacking(check(profile_at(server, tolerations=[own]))) == {}


def test_an_image_of_anothers_is_not_made_here(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    image = f"{server.address}/team/trainer@sha256:{'0' * 64}"
    untagged = f"{server.address}/op/operator"
    found = lacking(check(profile_at(server, image=image, operator_image=untagged)))
    assert found[f"image {image}"].startswith(f"docker manifest inspect {image}")
    assert found[f"image {untagged}"] == (
        f"make images IMAGES=operator REGISTRY={server.address}/op TAG=latest PUSH=1"
    )


def test_rights_that_lack_are_named(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    server.world.rights = {
        ("toolwise", verb, resource)
        for verb, resource in (
            ("create", "trainjobs"),
            ("get", "trainjobs"),
            ("list", "pods"),
            ("get", "pods/log"),
            ("get", "inferenceservices"),
            ("create", "inferenceservices"),
            ("patch", "inferenceservices"),
            ("get", "configmaps"),
            ("create", "configmaps"),
            ("patch", "configmaps"),
        )
    }
    findings = check(profile_at(server))
    assert list(lacking(findings)) == ["rights of toolwise-pipeline"]
    why = next(one.why for one in findings if one.verdict == "missing")
    assert why == "may not delete trainjobs, delete inferenceservices, get deployments"


def test_an_endpoint_with_keys_needs_their_file_and_one_of_them(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    content = profile_at(server).model_dump(mode="json")
    content["serve"]["keys"] = "/etc/toolwise/keys.yaml"
    content["kubeflow"]["serving"]["keys_secret"] = "toolwise-keys"
    server.world.add_secret("toolwise", "toolwise-keys", other="- name: shop")
    profile = Profile.model_validate(content)
    found = {one.what: one.why for one in check(profile) if one.verdict == "missing"}
    assert found == {
        "secret toolwise-storage in toolwise": "lacks TOOLWISE_API_KEY",
        "secret toolwise-keys in toolwise": "lacks keys.yaml",
    }


def test_an_agent_in_gvisor_needs_the_runtime_class_that_the_profile_names(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    profile = profile_at(server)
    assert profile.kubeflow is not None
    serving = profile.kubeflow.serving.model_dump(mode="json") | {"runtime_class": "runsc"}
    named = profile_at(server, serving=serving)
    found = lacking(check(named))
    assert list(found) == ["RuntimeClass runsc"]
    assert "kubeflow.serving.runtime_class" in found["RuntimeClass runsc"]
    weaker = named.serve.model_copy(update={"isolation": Isolation.BUBBLEWRAP})
    assert lacking(check(named.model_copy(update={"serve": weaker}))) == {}
    # Whoever submits may well not read what is the whole cluster's.
    server.world.forbidden = ("/apis/node.k8s.io",)
    findings = check(named)
    assert lacking(findings) == {}
    assert [one.what for one in findings if one.verdict == "unknown"] == ["RuntimeClass runsc"]


def test_what_cannot_be_told_is_no_failure(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    server.world.forbidden = (f"{SPACE}/secrets", "/api/v1/nodes")
    unreachable = "127.0.0.1:9/toolwise/trainer:0.1.0"
    findings = check(profile_at(server, image=unreachable))
    assert lacking(findings) == {}
    unknown = {one.what for one in findings if one.verdict == "unknown"}
    assert unknown == {
        "secret toolwise-storage in toolwise",
        "gpus",
        "buckets",
        f"image {unreachable}",
    }


def test_gpus_are_counted_on_the_nodes_the_profile_chooses(server: ClusterServer):
    server.world.__dict__.update(everything(server.address).__dict__)
    assert lacking(check(profile_at(server, node_selector={"gpu": "h100"}))) == {}
    found = lacking(check(profile_at(server, node_selector={"gpu": "h200"})))
    assert list(found) == ["1 × 8 nvidia.com/gpu"]


def node(name: str, gpus: int, cpu: str = "96", memory: str = "999Gi") -> dict[str, Any]:
    allocatable = {"nvidia.com/gpu": str(gpus), "cpu": cpu, "memory": memory}
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "metadata": {"name": name},
        "spec": {},
        "status": {"allocatable": allocatable, "conditions": ready},
    }


@pytest.mark.parametrize(
    ("trainer", "server_gpus", "nodes", "fits"),
    [
        (8, 8, [node("n1", 8)], False),
        (8, 8, [node("n1", 8), node("n2", 8)], True),
        (8, 4, [node("n1", 8), node("n2", 4)], True),
        (8, 4, [node("n1", 8), node("n2", 2)], False),
        (4, 4, [node("n1", 8)], True),
        # The server is as hungry for cores and memory (32, 256Gi) as the trainer's pod.
        (4, 4, [node("n1", 8, cpu="63")], False),
        (4, 4, [node("n1", 8, memory="511Gi")], False),
        # It goes where it leaves the trainer a node.
        (8, 2, [node("n1", 8), node("n2", 4)], True),
    ],
)
def test_the_rollout_server_needs_gpus_beside_the_trainers(
    server: ClusterServer,
    trainer: int,
    server_gpus: int,
    nodes: list[dict[str, Any]],
    fits: bool,
):
    server.world.__dict__.update(everything(server.address).__dict__)
    server.world.objects["/api/v1/nodes"] = {"items": nodes}
    image = f"{server.address}/toolwise/operator:0.1.0"
    content = profile_at(server, accelerators=trainer, vllm_image=image).model_dump(mode="json")
    content["sft"]["processes"] = content["hdpo"]["processes"] = trainer
    for section in (content, content["sft"], content["hdpo"]):
        section["hardware"] |= {"vllm": "server", "vllm_gpus": server_gpus}
    found = check(Profile.model_validate(content))
    what = f"1 × {trainer} nvidia.com/gpu, and {server_gpus} for vLLM at the same time"
    assert what in [one.what for one in found]
    assert list(lacking(found)) == ([] if fits else [what])


@pytest.mark.parametrize("namespace", ["kubeflow", "pipelines"])
def test_a_server_for_one_user_runs_its_pods_where_it_is_itself(
    namespace: str, server: ClusterServer, monkeypatch: pytest.MonkeyPatch
):
    if namespace != "kubeflow":
        monkeypatch.setenv("KFP_SERVER_NAMESPACE", namespace)
    server.world.__dict__.update(everything(server.address).__dict__)
    del server.world.resources["kubeflow.org/v1"]
    found = lacking(check(profile_at(server)))
    assert f"secret toolwise-storage in {namespace}" in found
    install = found[f"service account toolwise-pipeline in {namespace}"]
    assert f" --namespace {namespace} " in install
    # Or the chart would cut the server itself off.
    option = "--set networkPolicy.wholeNamespace=false"
    assert f" {option} " in f"{install} "
    assert f"`{option}`" in (ROOT / "k8s/PREREQUISITES.md").read_text()


def made(mend: str) -> list[dict[str, Any]]:
    """What a command gives `kubectl apply` to make."""
    before, _, apply = mend.rpartition(" | ")
    assert apply == "kubectl apply --server-side -f -"
    done = subprocess.run(["sh", "-c", before], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [*yaml.safe_load_all(done.stdout)]


def page(name: str) -> list[str]:
    """Lines of a page, those that are continued as one."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines()]


RUNTIMES = "/apis/serving.kserve.io/v1alpha1"


@pytest.mark.parametrize("namespace", ["kubeflow", "pipelines"])
def test_what_lacks_in_a_namespace_of_another_name_is_made_there(
    namespace: str, server: ClusterServer, monkeypatch: pytest.MonkeyPatch
):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; 1.21 or newer puts the runtime together")
    monkeypatch.setenv("KFP_SERVER_NAMESPACE", namespace)
    server.world.__dict__.update(everything(server.address).__dict__)
    del server.world.resources["kubeflow.org/v1"]
    runtime = "kserve-huggingfaceserver"
    del server.world.objects[f"{RUNTIMES}/clusterservingruntimes/{runtime}"]
    profile = profile_at(server)
    assert profile.kubeflow is not None
    serving = profile.kubeflow.serving.model_dump(mode="json") | {"namespace": namespace}
    found = lacking(check(profile_at(server, serving=serving)))
    for what, kind in (
        (f"volume claim training in {namespace}", "PersistentVolumeClaim"),
        (f"ServingRuntime {runtime}", "ServingRuntime"),
    ):
        [one] = made(found[what])
        # Not the overlay's namespace, quota or limits, which would bind what else runs there.
        assert (one["kind"], one["metadata"]["namespace"]) == (kind, namespace)
        told = page("k8s/PREREQUISITES.md")
        assert found[what].replace(f": {namespace}/", ": kubeflow/") in told
    nodes = yaml.safe_load((ROOT / "k8s/overlays/gpu/serving-nodes.yaml").read_text())
    [one] = made(found[f"ServingRuntime {runtime}"])
    assert one["spec"]["tolerations"] == nodes["spec"]["tolerations"]
    assert one["spec"]["containers"]


def test_rights_that_lack_where_the_model_is_served_are_given_there(
    server: ClusterServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KFP_NAMESPACE", "team-a")
    server.world.__dict__.update(everything(server.address).__dict__)
    # Those that the chart gives in its own namespace.
    server.world.rights = {
        ("team-a", verb, resource)
        for verb in ("get", "list", "create", "patch", "delete")
        for resource in ("trainjobs", "pods", "pods/log", "inferenceservices", "deployments")
    }
    serving = profile_at(server).model_dump(mode="json")["kubeflow"]["serving"]
    told = page("docs/kubernetes.md")
    for namespace in ("toolwise", "models"):
        elsewhere = profile_at(server, serving=serving | {"namespace": namespace})
        found = {one.what: one for one in check(elsewhere)}
        assert found["rights of toolwise-pipeline"].verdict == "there"
        one = found[f"rights of toolwise-pipeline in {namespace}"]
        assert one.why.startswith("may not get inferenceservices, create inferenceservices")
        role, binding = one.mend.split(" && ")
        words = shlex.split(binding)
        assert words[:3] == ["kubectl", "create", "rolebinding"]
        assert f"--namespace {namespace} --role=toolwise-deploy " in binding
        assert words[-1] == "--serviceaccount=team-a:toolwise-pipeline"
        if namespace == "toolwise":
            assert {role, binding} <= {*told}
            text = (ROOT / role.split()[-1]).read_text()
            given = yaml.safe_load(text)
        else:
            [given] = made(role)
        assert given["metadata"] == {"name": "toolwise-deploy", "namespace": namespace}
        rules = {
            (verb, group, resource)
            for rule in given["rules"]
            for verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
        asked = [review["resourceAttributes"] for review in server.world.reviewed]
        assert rules == {
            (one["verb"], one.get("group", ""), one["resource"])
            for one in asked
            if one["namespace"] == namespace
        }
    [volume] = [line for line in told if "k8s/base/training-volume.yaml" in line]
    space = "/api/v1/namespaces/team-a/persistentvolumeclaims/training"
    assert space not in server.world.objects
    assert lacking(check(elsewhere))["volume claim training in team-a"] == volume


def test_a_registry_that_asks_for_a_login_gets_the_pull_secrets(server: ClusterServer):
    server.world.login = ("robot", "secret")
    server.world.images = {"toolwise/operator:0.1.0"}
    image = f"{server.address}/toolwise/operator:0.1.0"
    auth = "cm9ib3Q6c2VjcmV0"  # robot:secret
    config = json.dumps({"auths": {f"https://{server.address}/v1/": {"auth": auth}}})
    logins = logins_of({".dockerconfigjson": config})
    assert logins == {server.address: Login("robot", "secret")}
    assert look_up(image, logins).present is True
    assert look_up(image, {}).present is False
    assert look_up(image, {server.address: Login("robot", "wrong")}).present is False
    server.world.images.clear()
    assert look_up(image, logins).present is False


def test_a_login_is_shown_to_its_own_registry_only(server: ClusterServer):
    """The kubelet pulls a public image without one, whatever else the pull secret holds."""
    others = ClusterServer(World(login=("robot", "secret"), public=True))
    server.world.login = ("hubuser", "hubsecret")
    server.world.images = others.world.images = {"toolwise/operator:0.1.0"}
    own = {"username": "hubuser", "password": "hubsecret"}
    auths = {server.address: own, "https://index.docker.io/v1/": own}
    logins = logins_of({".dockerconfigjson": json.dumps({"auths": auths})})
    try:
        for registry in (server, others):
            found = look_up(f"{registry.address}/toolwise/operator:0.1.0", logins)
            assert found.present is True, found
        assert others.world.presented == [None]
        assert server.world.presented != [None]
    finally:
        others.close()


@pytest.mark.parametrize("name", ["registry-1.docker.io", "docker.io", "index.docker.io"])
def test_docker_hubs_login_goes_by_each_of_its_names(name: str):
    hub = Login("hubuser", "hubsecret")
    assert login_at(Image.parse("vllm/vllm-openai:v1").registry, {name: hub}) == hub
    assert login_at("ghcr.io", {name: hub}) is None


def test_names_of_images_are_read_as_docker_reads_them():
    assert Image.parse("ghcr.io/a/b:1") == Image("ghcr.io", "a/b", "1")
    assert Image.parse("python") == Image("registry-1.docker.io", "library/python", "latest")
    assert Image.parse("vllm/vllm-openai:v1") == Image(
        "registry-1.docker.io", "vllm/vllm-openai", "v1"
    )
    digest = f"sha256:{'0' * 64}"
    assert Image.parse(f"localhost:5000/x@{digest}") == Image("localhost:5000", "x", digest)


def test_the_command_prints_a_table_and_fails_where_something_lacks(
    server: ClusterServer, tmp_path: Path
):
    server.world.__dict__.update(everything(server.address).__dict__)
    path = tmp_path / "profile.yaml"
    path.write_text(profile_at(server).model_dump_json())
    result = CliRunner().invoke(app, ["preflight", "--profile", str(path)])
    assert result.exit_code == 0, result.output
    assert "✓ KServe (InferenceService)" in " ".join(result.output.split())
    del server.world.resources[KSERVE]
    result = CliRunner().invoke(app, ["preflight", "--profile", str(path)])
    assert result.exit_code == 1
    assert "helm install kserve-crd" in result.output


def test_without_a_cluster_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(Unreachable, match="no cluster is configured here"):
        check(load_profile("qwen3-vl-8b"))
    gone = ClusterServer(World())
    monkeypatch.setenv("KUBECONFIG", str(gone.kubeconfig(tmp_path / "gone")))
    gone.close()
    with pytest.raises(Unreachable, match="does not answer"):
        check(load_profile("qwen3-vl-8b"))
    result = CliRunner().invoke(app, ["preflight"])
    assert result.exit_code == 1
    assert "Error: there is no cluster to check: Kubernetes at" in result.output


@pytest.mark.parametrize("text", ["- a list", "just words", "clusters: [{name: x}]", "a: [", "\0"])
def test_a_file_that_is_no_kubeconfig_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
):
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    result = CliRunner().invoke(app, ["preflight"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: there is no cluster to check")


def test_commands_are_printed_whole(tmp_path: Path):
    console = Console(file=io.StringIO(), width=40)
    command = "kubectl create secret generic a-name --namespace a-namespace --from-literal=KEY=…"
    print_findings([Finding("secret", "missing", "there is none", command)], console)
    assert isinstance(console.file, io.StringIO)
    assert f"    {command}\n" in console.file.getvalue()
