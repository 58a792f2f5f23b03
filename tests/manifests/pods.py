"""The pods that manifests make, and what each has to keep to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from kubernetes.utils.quantity import parse_quantity

Document = dict[str, Any]

_TEMPLATES = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}
_SERVERS = ("Deployment", "StatefulSet", "InferenceService")
_ISVC_PARTS = ("predictor", "transformer", "explainer")
_VOLUMES = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
)
"""Kinds of volume that the Pod Security Standard "restricted" allows."""
_REFERENCE = re.compile(r"\$\((\w+)\)")
_SECCOMP = ("RuntimeDefault", "Localhost")
_SECRET_NAME = re.compile(
    r"PASS(?!IVE|ES\b)|SECRET|CREDENTIAL|TOKEN(?![A-Z])|KEY(?![A-Z])", re.IGNORECASE
)
"""`DB_PASSWORD`, `PGPASS`, `OPENAI_APIKEY`, `--api-key`; not `--max-tokens` or `--keys`."""
_PLACE = re.compile(r"(FILE|PATH|DIR|FOLDER|HOME)$", re.IGNORECASE)
"""Ends of the names of variables and options that say where a secret is."""
_SETTING = re.compile(
    r"""^\s*["']?([\w.-]+)["']?[ \t]*[:=][ \t]*["']?([^\s"',{\[]+)""", re.MULTILINE
)
"""A name and its value, in YAML, JSON, TOML, INI or an environment file."""
_SECRET_VALUE = re.compile(r"://[^/\s:@$]*:[^/\s@$]+@")
"""A password within an address; `$(VARIABLE)` is a reference and passes."""


class Pod(NamedTuple):
    """A pod as some object makes it.

    Args:
        owner: kind and name of that object.
        namespace: its namespace; None stands for any.
        labels: the pod's.
        spec: the pod's.
        serves: whether it is to be ready for requests.
    """

    owner: str
    namespace: str | None
    labels: dict[str, str]
    spec: Document
    serves: bool

    @property
    def containers(self) -> list[Document]:
        """All of them, those that initialise first."""
        return [*self.spec.get("initContainers", ()), *self.spec.get("containers", ())]

    @property
    def ports(self) -> dict[str | int, Document]:
        """Ports of the containers, by number and by name."""
        ports: dict[str | int, Document] = {}
        if "model" in self.spec:
            # The container is the ServingRuntime's, and KServe's servers listen there.
            ports[8080] = {"containerPort": 8080}
        for container in self.containers:
            for port in container.get("ports", ()):
                ports[port["containerPort"]] = port
                if "name" in port:
                    ports[port["name"]] = port
        return ports


def pods(document: Document) -> Iterator[Pod]:
    """The pods that an object makes."""
    kind, name = document["kind"], document["metadata"]["name"]
    owner, namespace = f"{kind} {name}", document["metadata"].get("namespace", "")
    if kind in _TEMPLATES:
        template = document
        for part in _TEMPLATES[kind]:
            template = template[part]
        labels = template.get("metadata", {}).get("labels", {})
        yield Pod(owner, namespace, labels, template["spec"], kind in _SERVERS)
    elif kind == "InferenceService":
        for part in _ISVC_PARTS:
            if spec := document["spec"].get(part):
                # KServe passes on the labels of the InferenceService.
                labels = {
                    **document["metadata"].get("labels", {}),
                    "serving.kserve.io/inferenceservice": name,
                    "component": part,
                    "app": f"isvc.{name}-{part}",
                    **spec.get("labels", {}),
                }
                yield Pod(f"{owner}, {part}", namespace, labels, spec, bool(spec.get("containers")))
    elif kind in ("ServingRuntime", "ClusterServingRuntime"):
        yield Pod(owner, namespace, document["spec"].get("labels", {}), document["spec"], False)
    elif kind in ("TrainingRuntime", "ClusterTrainingRuntime"):
        for job in document["spec"]["template"]["spec"].get("replicatedJobs", ()):
            template = job["template"]["spec"]["template"]
            labels = template.get("metadata", {}).get("labels", {})
            yield Pod(f"{owner}, {job['name']}", namespace, labels, template["spec"], False)


def pod_faults(pod: Pod) -> Iterator[str]:
    """Which of the rules for pods it breaks."""
    yield from _pod_security(pod.spec)
    for container in pod.containers:
        where = f"container {container['name']}"
        yield from (f"{where}: {fault}" for fault in _image(container))
        yield from (f"{where}: {fault}" for fault in _container_security(container, pod.spec))
        yield from (f"{where}: {fault}" for fault in _resources(container))
        yield from (f"{where}: {fault}" for fault in _secrets(container))
        yield from (f"{where}: {fault}" for fault in _variables(container))
    # KServe merges `model` into a container of the ServingRuntime, which brings image and user.
    if model := pod.spec.get("model"):
        yield from (f"model: {fault}" for fault in (*_resources(model), *_secrets(model)))
    if pod.serves:
        for container in pod.spec["containers"]:
            if container.get("ports") and "readinessProbe" not in container:
                yield f"container {container['name']}: there is no readinessProbe"


def _image(container: Document) -> Iterator[str]:
    image = container.get("image")
    if not image:
        yield "there is no image"
        return
    if "@sha256:" in image:
        return
    tag = image.rpartition("/")[2].partition(":")[2]
    if not tag:
        yield f"image {image} has no tag"
    elif tag == "latest":
        yield f"image {image} is `latest`, which may be another one tomorrow"


def _pod_security(spec: Document) -> Iterator[str]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is not allowed"
    if spec.get("securityContext", {}).get("sysctls"):
        yield "sysctls are not allowed"
    seccomp = spec.get("securityContext", {}).get("seccompProfile", {})
    if seccomp.get("type", "RuntimeDefault") not in _SECCOMP:
        yield "the pod's seccompProfile is not RuntimeDefault"
    for volume in spec.get("volumes", ()):
        if wrong := sorted(set(volume) - {"name", *_VOLUMES}):
            yield f"volume {volume['name']}: {', '.join(wrong)} is not allowed"


def _container_security(container: Document, spec: Document) -> Iterator[str]:
    own = container.get("securityContext", {})
    context = {**spec.get("securityContext", {}), **own}
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0, which is root"
    if context.get("seccompProfile", {}).get("type") not in _SECCOMP:
        yield "seccompProfile is not RuntimeDefault"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("procMount", "Default") != "Default":
        yield f"procMount {own['procMount']} is not allowed"
    if own.get("privileged"):
        yield "privileged is not allowed"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem is not true"
    capabilities = own.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"]:
        yield "capabilities does not drop ALL"
    if added := set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"capabilities adds {', '.join(sorted(added))}"
    for port in container.get("ports", ()):
        if "hostPort" in port:
            yield f"hostPort {port['hostPort']} is not allowed"


def _resources(container: Document) -> Iterator[str]:
    amounts = container.get("resources", {})
    requests, limits = (amounts.get(kind, {}) for kind in ("requests", "limits"))
    for kind, given in (("requests", requests), ("limits", limits)):
        for resource in ("cpu", "memory"):
            if resource not in given:
                yield f"resources.{kind} has no {resource}"
    for resource in requests.keys() & limits.keys():
        if parse_quantity(limits[resource]) < parse_quantity(requests[resource]):
            yield f"resources: the limit of {resource} is less than what is requested"


def _variables(container: Document) -> Iterator[str]:
    """Of `$(NAME)` in the command line, which Kubernetes leaves as it is where there is no NAME."""
    given = {variable["name"] for variable in container.get("env", ())}
    for text in (*container.get("command", ()), *container.get("args", ())):
        for name in _REFERENCE.findall(str(text)):
            if name not in given:
                yield f"there is no variable {name} to put into {text}"


def _secrets(container: Document) -> Iterator[str]:
    for variable in container.get("env", ()):
        name, value = variable["name"], str(variable.get("value", ""))
        if _is_secret(name, value):
            yield f"env {name} is a literal; take it from a Secret"
        elif _SECRET_VALUE.search(value):
            yield f"env {name} holds a password; take it from a Secret"
    line = [str(part) for field in ("command", "args") for part in container.get(field, ())]
    for argument, following in pairwise([*line, ""]):
        name, given, value = argument.partition("=")
        if name.startswith("-") and _is_secret(name, value if given else following):
            yield f"the argument {name} is a literal; take it from a Secret"
        elif _SECRET_VALUE.search(argument):
            yield "an argument holds a password; take it from a Secret"


def config_faults(document: Document) -> Iterator[str]:
    """Secrets in a ConfigMap, as a key or as a setting within a file."""
    for key, content in (document.get("data") or {}).items():
        settings = [(key, content), *_SETTING.findall(content)]
        for name in sorted({name for name, value in settings if _is_secret(name, value)}):
            yield f"data.{key}: {name} is a secret; keep it in a Secret"
        if _SECRET_VALUE.search(content):
            yield f"data.{key} holds a password; keep it in a Secret"


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable, option or setting of this name should not have the value in the open."""
    if not value or "$(" in value or "${" in value or value.lower() in ("true", "false", "null"):
        return False
    return bool(_SECRET_NAME.search(name)) and not _PLACE.search(name)
