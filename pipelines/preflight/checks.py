"""What a profile needs of a cluster, one check for each thing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from pipelines.placement import endpoint_keys, secret_keys
from pipelines.preflight.buckets import look_up_bucket
from pipelines.preflight.cluster import Cluster, Unanswered
from pipelines.preflight.finding import Finding
from pipelines.preflight.images import Image, Login, logins_of, look_up
from pipelines.preflight.nodes import Node, room_beside
from pipelines.submission.server import server_namespace
from toolwise import __version__
from toolwise.profile import REGISTRY, KubeflowSettings, Profile
from toolwise.storage import S3_KEYS
from toolwise.tools.sandbox.contract import Isolation
from toolwise.training.launcher.trainjob import GROUP, RUNTIME, VERSION

KSERVE = "serving.kserve.io"
SERVING_RUNTIME = "kserve-huggingfaceserver"
"""The runtime that `toolwise.serving.inference_service` asks for."""

KSERVE_FLAGS = (
    "kserve.controller.deploymentMode=Standard",
    "kserve.controller.gateway.domain=example.com",
    "kserve.controller.gateway.urlScheme=https",
    "kserve.controller.gateway.ingressGateway.enableGatewayApi=true",
    "kserve.controller.gateway.ingressGateway.kserveGateway=istio-system/kserve-ingress-gateway",
    "kserve.controller.gateway.ingressGateway.className=istio",
)
"""How k8s/PREREQUISITES.md installs KServe."""

GPU_OPERATOR = (
    "helm repo add nvidia https://helm.ngc.nvidia.com/nvidia && "
    "helm install gpu-operator nvidia/gpu-operator --version v25.10.1 -n gpu-operator "
    "--create-namespace --wait"
)

TARGETS = ("trainer", "rollout", "operator", "agent", "sandbox")
"""The images that `make images` builds."""

HELM = (
    "helm upgrade --install toolwise charts/toolwise --namespace {namespace} --create-namespace "
    "-f charts/toolwise/values-gpu.yaml"
)
RUNTIME_CLASS = "gvisor"
"""What values-gpu.yaml calls gVisor's RuntimeClass."""
NO_GVISOR = " --set sandbox.isolation=none --set sandbox.runtimeClassName="
UPGRADE = "helm upgrade toolwise charts/toolwise -n {namespace} --reset-then-reuse-values"
"""For a release that is there: it keeps its values."""
RELEASE = (
    "services/toolwise-mlflow",
    "services/toolwise-sandbox",
    "serviceaccounts/toolwise-pipeline",
)
"""What a release is known by."""
HOME = "toolwise"
"""The namespace that `k8s/` is written for."""
OVERLAY = "kubectl apply --server-side -k k8s/overlays/gpu"
MOVED = "sed 's/namespace: toolwise/namespace: {namespace}/'"
APPLY = "kubectl apply --server-side -f"
VOLUME_FILE = "k8s/base/training-volume.yaml"
RIGHTS_FILE = "k8s/examples/serving-rights.yaml"
RUNTIME_FILES = (
    "kubectl patch --local -f k8s/base/serving-runtime.yaml --type merge "
    "--patch-file k8s/overlays/gpu/serving-nodes.yaml -o yaml"
)
"""The overlay's runtime without its quota and limits, which other pods there are not to have."""

Right = tuple[str, str, str]
"""Verb, API group, resource."""

_TRAINER_RIGHTS: tuple[Right, ...] = (
    *((verb, GROUP, "trainjobs") for verb in ("create", "get", "delete")),
    ("list", "", "pods"),
    ("get", "", "pods/log"),
)
_SERVER_RIGHTS: tuple[Right, ...] = (("create", "apps", "deployments"), ("create", "", "services"))
_SERVING_RIGHTS: tuple[Right, ...] = (
    *((verb, KSERVE, "inferenceservices") for verb in ("get", "create", "patch", "delete")),
    ("get", "apps", "deployments"),
    *((verb, "", "configmaps") for verb in ("get", "create", "patch")),
)


_NAMED = 5
"""Nodes that are passed over whose reasons are said."""


@dataclass
class Checks:
    """The checks of one profile.

    Args:
        cluster: where.
        profile: whose needs.
    """

    cluster: Cluster
    profile: Profile

    def __post_init__(self) -> None:
        assert self.profile.kubeflow is not None
        self.kubeflow: KubeflowSettings = self.profile.kubeflow
        self.namespace = self._namespace()

    def all(self) -> Iterator[Finding]:
        """Every finding, in the order in which they are mended."""
        checks: list[Callable[[], Iterator[Finding]]] = [
            self.namespaces,
            self.services,
            self.trainer,
            self.serving,
            self.secrets,
            self.account,
            self.gpus,
            self.buckets,
            self.images,
        ]
        for check in checks:
            try:
                yield from check()
            except Unanswered as why:
                yield Finding(check.__name__.replace("_", " "), "unknown", str(why))

    def _namespace(self) -> str:
        """Where the pods of the run will be."""
        if chosen := os.environ.get("KFP_NAMESPACE"):
            return chosen
        try:
            several_users = self.cluster.has_resource("kubeflow.org/v1", "profiles")
        except Unanswered:
            several_users = True
        return self.kubeflow.namespace if several_users else server_namespace()

    def namespaces(self) -> Iterator[Finding]:
        """Where pods run and where the model is served."""
        for name in sorted({self.namespace, self.kubeflow.serving.namespace}):
            yield self._object(
                f"namespace {name}",
                f"/api/v1/namespaces/{name}",
                f"kubectl create namespace {name}",
            )

    def services(self) -> Iterator[Finding]:
        """MLflow and the sandbox, where their addresses are a Service's of this cluster."""
        addresses = {"MLflow": self.kubeflow.tracking_uri, "sandbox": self.kubeflow.sandbox}
        for what, url in addresses.items():
            name, _, rest = (urlsplit(url or "").hostname or "").partition(".")
            namespace, _, domain = rest.partition(".")
            if domain in ("svc", "svc.cluster.local"):
                yield self._object(
                    f"{what}: service {name}",
                    f"/api/v1/namespaces/{namespace}/services/{name}",
                    self._chart(namespace),
                )

    def _chart(self, namespace: str) -> str:
        """The command that installs the chart, with what the profile says of images and gVisor.

        One that is there is upgraded, with the values it has.
        """
        # Kubeflow Pipelines' own pods are not to be cut off.
        shared = namespace == server_namespace()
        option = " --set networkPolicy.wholeNamespace=false" if shared else ""
        if self._installed(namespace):
            return UPGRADE.format(namespace=namespace) + option
        registry, _, image = self.kubeflow.image.rpartition("/")
        tag = image.partition("@")[0].partition(":")[2]
        if registry != REGISTRY:
            option += f" --set image.registry={registry}"
        if tag not in ("", __version__):
            # As a string, even where it is a number.
            option += f" --set-string image.tag={tag}"
        if self.kubeflow.image_pull_secret:
            option += f" --set 'image.pullSecrets={{{self.kubeflow.image_pull_secret}}}'"
        if {*self.profile.isolation.values()} == {Isolation.NONE}:
            option += NO_GVISOR
        elif self.kubeflow.serving.runtime_class != RUNTIME_CLASS:
            option += f" --set sandbox.runtimeClassName={self.kubeflow.serving.runtime_class}"
        return HELM.format(namespace=namespace) + option

    def _installed(self, namespace: str) -> bool:
        """Whether objects of the chart are there, as far as the cluster says."""
        for name in RELEASE:
            with suppress(Unanswered):
                if self.cluster.get(f"/api/v1/namespaces/{namespace}/{name}") is not None:
                    return True
        return False

    def trainer(self) -> Iterator[Finding]:
        """Kubeflow Trainer, the training runtime, and the volumes that this mounts."""
        if self.kubeflow.exchange is None:
            return
        yield self._kind(
            "Kubeflow Trainer (TrainJob)",
            f"{GROUP}/{VERSION}",
            "trainjobs",
            "helm install kubeflow-trainer oci://ghcr.io/kubeflow/charts/kubeflow-trainer "
            f"--version {version('kubeflow-trainer-api')} -n kubeflow-system --create-namespace "
            "--wait",
        )
        runtime = self.cluster.get(f"/apis/{GROUP}/{VERSION}/clustertrainingruntimes/{RUNTIME}")
        yield _found(f"ClusterTrainingRuntime {RUNTIME}", runtime, OVERLAY)
        for claim in sorted(set(_claims(runtime))):
            yield self._claim(claim)

    def _claim(self, name: str) -> Finding:
        path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims/{name}"
        what = f"volume claim {name} in {self.namespace}"
        found = self.cluster.get(path)
        if found is None:
            moved = f"{MOVED.format(namespace=self.namespace)} {VOLUME_FILE} | {APPLY} -"
            mend = OVERLAY if self.namespace == HOME else moved
            return Finding(what, "missing", "there is none", mend)
        phase = found.get("status", {}).get("phase")
        wanted = found["spec"].get("storageClassName")
        if phase == "Bound" or not wanted:
            return Finding(what, "there" if phase == "Bound" else "unknown", f"is {phase}")
        kind = self.cluster.get(f"/apis/storage.k8s.io/v1/storageclasses/{wanted}")
        if kind is None:
            why = f"its storage class {wanted} is not there"
            return Finding(what, "missing", why, "kubectl get storageclass   # name one of these")
        return Finding(what, "there", f"is {phase}; storage class {wanted} is there")

    def serving(self) -> Iterator[Finding]:
        """The agent's RuntimeClass, KServe, and its runtime for Hugging Face models."""
        if self.profile.serve.isolation is Isolation.GVISOR:
            name = self.kubeflow.serving.runtime_class
            yield self._object(
                f"RuntimeClass {name}",
                f"/apis/node.k8s.io/v1/runtimeclasses/{name}",
                "kubectl get runtimeclass   # name gVisor's in kubeflow.serving.runtime_class, or "
                "make it: k8s/PREREQUISITES.md",
            )
        release = f"v{version('kserve')} -n kserve"
        yield self._kind(
            "KServe (InferenceService)",
            f"{KSERVE}/v1beta1",
            "inferenceservices",
            "helm install kserve-crd oci://ghcr.io/kserve/charts/kserve-crd "
            f"--version {release} --create-namespace --wait && "
            "helm install kserve oci://ghcr.io/kserve/charts/kserve-resources "
            f"--version {release} --wait " + " ".join(f"--set {flag}" for flag in KSERVE_FLAGS),
        )
        runtimes = f"/apis/{KSERVE}/v1alpha1"
        namespace = self.kubeflow.serving.namespace
        found = self.cluster.get(
            f"{runtimes}/namespaces/{namespace}/servingruntimes/{SERVING_RUNTIME}"
        ) or self.cluster.get(f"{runtimes}/clusterservingruntimes/{SERVING_RUNTIME}")
        moved = f"{RUNTIME_FILES} | {MOVED.format(namespace=namespace)} | {APPLY} -"
        mend = OVERLAY if namespace == HOME else moved
        yield _found(f"ServingRuntime {SERVING_RUNTIME}", found, mend)

    def secrets(self) -> Iterator[Finding]:
        """The secrets that pods take their environment from, and their keys."""
        taken = (*secret_keys(self.profile), *endpoint_keys(self.profile))
        yield self._secret(self.namespace, self.kubeflow.secret, taken)
        serving = self.kubeflow.serving
        if (serving.namespace, serving.secret) != (self.namespace, self.kubeflow.secret):
            yield self._secret(serving.namespace, serving.secret, S3_KEYS)
        if serving.keys_secret:
            file = self.profile.serve.keys
            names = (file.name,) if file else ()
            yield self._secret(serving.namespace, serving.keys_secret, names)
        if self.kubeflow.image_pull_secret:
            name = self.kubeflow.image_pull_secret
            made = (
                f"kubectl create secret docker-registry {name} --namespace {self.namespace} "
                "--docker-server=… --docker-username=… --docker-password=…"
            )
            yield self._object(f"secret {name} in {self.namespace}", self._secret_path(name), made)

    def _secret_path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/secrets/{name}"

    def _secret(self, namespace: str, name: str, keys: tuple[str, ...]) -> Finding:
        what = f"secret {name} in {namespace}"
        values = " ".join(f"--from-literal={key}=…" for key in keys)
        made = f"kubectl create secret generic {name} --namespace {namespace} {values}".rstrip()
        try:
            found = self.cluster.secret(namespace, name)
        except Unanswered as why:
            return Finding(what, "unknown", str(why))
        if found is None:
            return Finding(what, "missing", "there is none", made)
        lacking = [key for key in keys if not found.get(key)]
        if lacking:
            mend = f"{made} --dry-run=client -o yaml | kubectl apply -f -"
            return Finding(what, "missing", f"lacks {', '.join(lacking)}", mend)
        return Finding(what, "there", f"has {', '.join(keys)}" if keys else "")

    def account(self) -> Iterator[Finding]:
        """The service accounts, and the rights of the steps'."""
        serving, steps = self.kubeflow.serving, self.kubeflow.service_account
        wanted = [(self.namespace, steps), (serving.namespace, serving.service_account)]
        for namespace, name in wanted:
            if name:
                yield self._object(
                    f"service account {name} in {namespace}",
                    f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}",
                    self._chart(namespace),
                )
        if steps is None:
            return
        rights: list[Right] = []
        if self.kubeflow.exchange:
            rights += _TRAINER_RIGHTS
            if self.profile.hardware and self.profile.hardware.vllm == "server":
                rights += _SERVER_RIGHTS
        here = serving.namespace == self.namespace
        if here:
            rights += _SERVING_RIGHTS
        if rights:
            chart = self._chart(self.namespace)
            yield self._rights(f"rights of {steps}", steps, self.namespace, rights, chart)
        if not here:
            what = f"rights of {steps} in {serving.namespace}"
            mend = self._serving_rights(steps)
            yield self._rights(what, steps, serving.namespace, _SERVING_RIGHTS, mend)

    def _rights(
        self, what: str, account: str, place: str, rights: Sequence[Right], mend: str
    ) -> Finding:
        """Whether the steps' account has rights in the namespace `place`."""
        lacking = [
            f"{verb} {resource}"
            for verb, group, resource in rights
            if not self.cluster.may(account, self.namespace, verb, group, f"{place}:{resource}")
        ]
        if lacking:
            return Finding(what, "missing", f"may not {', '.join(lacking)}", mend)
        return Finding(what, "there", f"{len(rights)} rights")

    def _serving_rights(self, account: str) -> str:
        """The commands that let an account of this namespace deploy into that of the endpoint."""
        namespace = self.kubeflow.serving.namespace
        moved = f"{MOVED.format(namespace=namespace)} {RIGHTS_FILE} | {APPLY} -"
        role = f"{APPLY} {RIGHTS_FILE}" if namespace == HOME else moved
        return (
            f"{role} && kubectl create rolebinding toolwise-deploy-{self.namespace} "
            f"--namespace {namespace} --role=toolwise-deploy "
            f"--serviceaccount={self.namespace}:{account}"
        )

    def gpus(self) -> Iterator[Finding]:
        """GPUs of nodes, against the largest pod, the nodes of a training step and its server."""
        kind = self.kubeflow.accelerator
        each, nodes = self.kubeflow.accelerators, 1
        if self.kubeflow.exchange and self.profile.hardware:
            each = max(each, self.profile.sft.processes, self.profile.hdpo.processes)
            nodes = self.profile.hardware.nodes
        if each == 0:
            return
        selector = self.kubeflow.node_selector.items()
        found = [
            Node.read(node, kind)
            for node in (self.cluster.get("/api/v1/nodes") or {}).get("items", [])
            if selector <= node["metadata"].get("labels", {}).items()
        ]
        offering = [node for node in found if node.accelerators]
        unfit = {node.name: node.unfit(self.kubeflow) for node in offering}
        usable = [node for node in offering if not unfit[node.name]]
        what = f"{nodes} × {each} {kind}"
        total = f"{sum(node.accelerators for node in usable)} on {len(usable)} nodes"
        mend = f"kubectl describe nodes | grep {kind}   # add nodes, or take a smaller profile"
        if sum(node.accelerators >= each for node in usable) >= nodes:
            yield Finding(what, "there", total)
            hardware = self.profile.hardware
            if self.kubeflow.exchange and hardware and hardware.vllm == "server":
                trainer, server = self.profile.hdpo.processes, hardware.vllm_gpus
                both = f"{nodes} × {trainer} {kind}, and {server} for vLLM at the same time"
                if room_beside(usable, nodes, trainer, server, self.kubeflow):
                    yield Finding(both, "there", total)
                else:
                    yield Finding(both, "missing", f"no room for both: there are {total}", mend)
        elif not offering:
            yield Finding(what, "missing", "no node offers any", GPU_OPERATOR)
        else:
            passed_over = [f"{name} {why}" for name, why in unfit.items() if why][:_NAMED]
            yield Finding(what, "missing", "; ".join([f"there are {total}", *passed_over]), mend)

    def buckets(self) -> Iterator[Finding]:
        """The buckets of the profile's addresses, and its corpus, with its secret's credentials."""
        serving, published = self.kubeflow.serving, self.profile.data.published
        addresses = [self.kubeflow.exchange, serving.models]
        if published:
            addresses.append(published.corpus)
            for sets in (published.trajectories, published.tasks, published.benchmark):
                addresses += [one.path for one in sets]
        names = sorted(
            {urlsplit(one).netloc for one in addresses if one and one.startswith("s3://")}
        )
        secret = self.cluster.secret(self.namespace, self.kubeflow.secret) if names else None
        for name in names:
            what = f"bucket {name}"
            if secret is None:
                yield Finding(what, "unknown", f"secret {self.kubeflow.secret} is not there")
                continue
            answer = look_up_bucket(name, secret)
            endpoint = secret.get("AWS_ENDPOINT_URL_S3")
            option = f" --endpoint-url {endpoint}" if endpoint else ""
            yield _answered(what, *answer, f"aws s3 mb s3://{name}{option}")
            corpus = urlsplit((published and published.corpus) or "")
            if answer.present and (corpus.scheme, corpus.netloc) == ("s3", name):
                address, key = corpus.geturl(), corpus.path.lstrip("/")
                # docs/kubernetes.md says how to make the file.
                mend = f"aws s3 cp {key.rpartition('/')[2]} {address}{option}"
                yield _answered(f"corpus {address}", *look_up_bucket(name, secret, key), mend)

    def images(self) -> Iterator[Finding]:
        """The images of the steps and of the endpoint, at their registries."""
        kubeflow = self.kubeflow
        serving = kubeflow.serving.image
        names = [kubeflow.operator_image, kubeflow.image, kubeflow.vllm_image, serving]
        logins: dict[str, Login] = {}
        if kubeflow.image_pull_secret:
            try:
                secret = self.cluster.secret(self.namespace, kubeflow.image_pull_secret)
                logins = logins_of(secret) if secret else {}
            except (Unanswered, ValueError, KeyError, TypeError) as why:
                yield Finding(f"logins of {kubeflow.image_pull_secret}", "unknown", str(why))
        for image in sorted({name for name in names if name}):
            yield _answered(f"image {image}", *look_up(image, logins), _image_mend(image))

    def _object(self, what: str, path: str, mend: str) -> Finding:
        try:
            return _found(what, self.cluster.get(path), mend)
        except Unanswered as why:
            return Finding(what, "unknown", str(why))

    def _kind(self, what: str, group: str, resource: str, mend: str) -> Finding:
        if self.cluster.has_resource(group, resource):
            return Finding(what, "there", group)
        return Finding(what, "missing", f"the cluster knows no {resource} of {group}", mend)


def _image_mend(name: str) -> str:
    """The command that makes an image, where it is one of Toolwise's."""
    image = Image.parse(name)
    registry, _, target = name.partition("@")[0].removesuffix(f":{image.reference}").rpartition("/")
    if target in TARGETS and registry and "@" not in name:
        return f"make images IMAGES={target} REGISTRY={registry} TAG={image.reference} PUSH=1"
    return f"docker manifest inspect {name}   # push it, or name another image in the profile"


def _found(what: str, found: Any, mend: str) -> Finding:
    if found is None:
        return Finding(what, "missing", "there is none", mend)
    return Finding(what, "there")


def _answered(what: str, present: bool | None, why: str, mend: str) -> Finding:
    if present is None:
        return Finding(what, "unknown", why)
    return Finding(what, "there" if present else "missing", why, "" if present else mend)


def _claims(runtime: dict[str, Any] | None) -> Iterator[str]:
    """Names of the volume claims that a training runtime's pods mount."""
    template = (runtime or {}).get("spec", {}).get("template", {}).get("spec", {})
    for job in template.get("replicatedJobs", []):
        pod = job["template"]["spec"]["template"].get("spec", {})
        for volume in pod.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                yield claim["claimName"]
