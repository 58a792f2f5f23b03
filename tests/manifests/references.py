"""Whether what manifests refer to exists: objects, keys, ports, and pods that selectors match."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from ipaddress import ip_network
from typing import Any

from tests.manifests.operators import PODS
from tests.manifests.pods import Pod, pods

Document = dict[str, Any]

_ADDRESS = re.compile(
    r"://(?P<name>[a-z0-9-]+)(\.(?P<space>[a-z0-9-]+)\.svc(\.cluster\.local)?)?:(?P<port>\d+)"
)
"""A Service of the cluster in a URL."""
_CLUSTER_ACCOUNTS = frozenset({"default"})


class References:
    """The objects of one rendering, to look references up in.

    Args:
        documents: the rendering.
        outside: what is made elsewhere, as `Kind/name`, or with its keys as `Kind/name/key`.
    """

    def __init__(self, documents: list[Document], outside: Collection[str]) -> None:
        self._documents = documents
        self._outside: dict[str, set[str]] = {}
        for name in outside:
            kind, name, *key = name.split("/", 2)
            self._outside.setdefault(f"{kind}/{name}", set()).update(key)
        self._pods = [*PODS, *(pod for document in documents for pod in pods(document))]
        self._keys: dict[tuple[str, str, str], frozenset[str] | None] = {}
        for document in documents:
            self._keys.update(_provided(document))

    def pod_faults(self, pod: Pod) -> Iterator[str]:
        """References of a pod that lead nowhere."""
        spec, space = pod.spec, pod.namespace
        account = spec.get("serviceAccountName", "default")
        if account not in _CLUSTER_ACCOUNTS:
            yield from self._missing("ServiceAccount", space, account)
        for secret in spec.get("imagePullSecrets", ()):
            yield from self._missing("Secret", space, secret["name"])
        for name, kind in (
            ("runtimeClassName", "RuntimeClass"),
            ("priorityClassName", "PriorityClass"),
        ):
            if name in spec:
                yield from self._missing(kind, "", spec[name])
        containers = [*pod.containers, *([spec["model"]] if "model" in spec else ())]
        for container in containers:
            yield from self._container_faults(container, pod)
        for volume in spec.get("volumes", ()):
            yield from self._volume_faults(volume, space)
        for constraint in spec.get("topologySpreadConstraints", ()):
            if not selects(constraint["labelSelector"], pod.labels):
                yield "a topologySpreadConstraint does not select the pod itself"

    def document_faults(self, document: Document) -> Iterator[str]:
        """References of an object, its pods' excepted, that lead nowhere."""
        kind = document["kind"]
        space = document["metadata"].get("namespace", "")
        spec = document.get("spec", {})
        match kind:
            case "ServiceAccount":
                for secret in (*document.get("secrets", ()), *document.get("imagePullSecrets", ())):
                    yield from self._missing("Secret", space, secret["name"])
            case "Service":
                yield from self._service_faults(spec, space)
            case "Deployment" | "StatefulSet" | "DaemonSet":
                [own] = pods(document)
                if not selects(spec["selector"], own.labels):
                    yield "its selector does not match its own pods"
                if kind == "StatefulSet":
                    yield from self._missing("Service", space, spec["serviceName"])
            case "PodDisruptionBudget":
                yield from self._selector_faults(spec["selector"], space)
            case "NetworkPolicy":
                yield from self._policy_faults(spec, space)
            case "ServiceMonitor" | "PodMonitor":
                yield from self._monitor_faults(kind, spec, space)
            case "HorizontalPodAutoscaler":
                target = spec["scaleTargetRef"]
                yield from self._missing(target["kind"], space, target["name"])
            case "RoleBinding" | "ClusterRoleBinding":
                yield from self._binding_faults(document, space)
            case "InferenceService":
                yield from self._model_name_faults(document)
                runtime = spec["predictor"].get("model", {}).get("runtime")
                if runtime and not self._exists("ClusterServingRuntime", "", runtime):
                    yield from self._missing("ServingRuntime", space, runtime)

    def _model_name_faults(self, document: Document) -> Iterator[str]:
        """An InferenceService's own name, and KServe's names, where its parts repeat them."""
        name, spec = document["metadata"]["name"], document["spec"]
        model = spec["predictor"].get("model", {})
        for argument in model.get("args", ()):
            option, _, value = argument.partition("=")
            if option == "--model_name" and value != name:
                yield f"the model is served as {value}, not as {name}"
        format_name = model.get("modelFormat", {}).get("name", "huggingface")
        if format_name != "huggingface":
            yield f"the ServingRuntime does not serve the format {format_name}"
        for container in spec.get("transformer", {}).get("containers", ()):
            if container["name"] != "kserve-container":
                yield f"KServe looks for the container kserve-container, not {container['name']}"
            path = container.get("readinessProbe", {}).get("httpGet", {}).get("path")
            if path != f"/v1/models/{name}":
                yield f"readinessProbe asks {path}, not for the model {name}"

    # Objects and their keys

    def _exists(self, kind: str, namespace: str, name: str) -> bool:
        return (kind, namespace, name) in self._keys or f"{kind}/{name}" in self._outside

    def _missing(self, kind: str, namespace: str, name: str) -> Iterator[str]:
        if not self._exists(kind, namespace, name):
            yield f"there is no {kind} {name}"

    def _key_faults(self, kind: str, namespace: str, source: Document, key: str) -> Iterator[str]:
        """Of a reference to one key of a ConfigMap or Secret."""
        name = source["name"]
        if source.get("optional"):
            return
        yield from self._missing(kind, namespace, name)
        # Of what is made elsewhere no keys may be known.
        made_elsewhere = self._outside.get(f"{kind}/{name}") or None
        keys = self._keys.get((kind, namespace, name), made_elsewhere)
        if keys is not None and key not in keys:
            yield f"{kind} {name} has no key {key}"

    def _container_faults(self, container: Document, pod: Pod) -> Iterator[str]:
        space = pod.namespace
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if field in source:
                    yield from self._key_faults(kind, space, source[field], source[field]["key"])
        for source in container.get("envFrom", ()):
            for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if field in source and not source[field].get("optional"):
                    yield from self._missing(kind, space, source[field]["name"])
        yield from self._address_faults(container, space)
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())} | self._claimed(pod)
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"container {container['name']}: there is no volume {mount['name']}"
        own = Pod("", "", {}, {"containers": [container]}, False).ports
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            for way in ("httpGet", "tcpSocket", "grpc"):
                port = container.get(probe, {}).get(way, {}).get("port")
                if port is not None and port not in own:
                    yield f"container {container['name']}: {probe} asks port {port}, which is none"

    def _address_faults(self, container: Document, space: str) -> Iterator[str]:
        """Of Services that the environment or the command line names."""
        texts = [str(variable.get("value", "")) for variable in container.get("env", ())]
        texts += [str(text) for field in ("command", "args") for text in container.get(field, ())]
        for found in (found for text in texts for found in _ADDRESS.finditer(text)):
            name, port = found["name"], int(found["port"])
            place = ("Service", found["space"] or space, name)
            yield from self._missing(*place)
            ports = self._keys.get(place)
            if ports is not None and str(port) not in ports:
                yield f"Service {name} has no port {port}"

    def _claimed(self, pod: Pod) -> set[str]:
        """Volumes that a StatefulSet claims for each of its pods."""
        return {
            claim["metadata"]["name"]
            for document in self._documents
            if f"{document['kind']} {document['metadata']['name']}" == pod.owner
            for claim in document["spec"].get("volumeClaimTemplates", ())
        }

    def _volume_faults(self, volume: Document, space: str) -> Iterator[str]:
        sources = [volume, *volume.get("projected", {}).get("sources", ())]
        for source in sources:
            for field, kind, naming in (
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName" if source is volume else "name"),
            ):
                if field not in source:
                    continue
                named = {"name": source[field][naming], **source[field]}
                for item in source[field].get("items", ()):
                    yield from self._key_faults(kind, space, named, item["key"])
                if not named.get("optional"):
                    yield from self._missing(kind, space, named["name"])
        if claim := volume.get("persistentVolumeClaim"):
            yield from self._missing("PersistentVolumeClaim", space, claim["claimName"])

    def _binding_faults(self, document: Document, space: str) -> Iterator[str]:
        role = document["roleRef"]
        if role["apiGroup"] != "rbac.authorization.k8s.io":
            yield f"roleRef.apiGroup is never {role['apiGroup']}"
        yield from self._missing(
            role["kind"], space if role["kind"] == "Role" else "", role["name"]
        )
        for subject in document.get("subjects", ()):
            if subject["kind"] not in ("Group", "ServiceAccount", "User"):
                yield f"subjects: there is no kind {subject['kind']}"
            if subject["kind"] == "ServiceAccount" and subject["name"] not in _CLUSTER_ACCOUNTS:
                namespace = subject.get("namespace", space)
                yield from self._missing("ServiceAccount", namespace, subject["name"])

    # Selectors and ports

    def _selected(self, selector: Document, namespace: str) -> list[Pod]:
        return [
            pod
            for pod in self._pods
            if pod.namespace in (namespace, None) and selects(selector, pod.labels)
        ]

    def _selector_faults(self, selector: Document, namespace: str) -> Iterator[str]:
        if selector and not self._selected(selector, namespace):
            yield f"no pod matches {_shown(selector)}"
        for term in selector.get("matchExpressions", ()):
            for value in term.get("values", ()):
                if not self._selected({"matchLabels": {term["key"]: value}}, namespace):
                    yield f"no pod matches {term['key']}={value}"

    def _namespace_faults(self, selector: Document) -> Iterator[str]:
        """Namespaces are selected by the label that Kubernetes gives each of them."""
        for name, value in selector.get("matchLabels", {}).items():
            if name != "kubernetes.io/metadata.name":
                yield f"no namespace has the label {name}"
            else:
                yield from self._missing("Namespace", "", value)

    def _service_faults(self, spec: Document, space: str) -> Iterator[str]:
        if "selector" not in spec:
            return
        selector = {"matchLabels": spec["selector"]}
        yield from self._selector_faults(selector, space)
        for pod in self._selected(selector, space):
            for port in spec["ports"]:
                target = port.get("targetPort", port["port"])
                if target not in pod.ports:
                    yield f"{pod.owner} has no port {target}"

    def _policy_faults(self, spec: Document, space: str) -> Iterator[str]:
        yield from self._selector_faults(spec.get("podSelector", {}), space)
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction) or ():
                peers = rule.get(side, ())
                for peer in peers:
                    for block in _blocks(peer):
                        try:
                            ip_network(block)
                        except ValueError as error:
                            yield str(error)
                    if "namespaceSelector" in peer:
                        yield from self._namespace_faults(peer["namespaceSelector"])
                    elif "podSelector" in peer:
                        yield from self._selector_faults(peer["podSelector"], space)
                yield from self._policy_port_faults(spec, rule, direction, peers, space)

    def _policy_port_faults(
        self, spec: Document, rule: Document, direction: str, peers: Any, space: str
    ) -> Iterator[str]:
        """A port that a rule opens has to be one of the pods it leads to."""
        if direction == "ingress":
            reached = self._selected(spec.get("podSelector", {}), space)
        else:
            inside = [p for p in peers if "namespaceSelector" not in p and p.get("podSelector")]
            if len(inside) != len(peers):
                return
            reached = [p for peer in inside for p in self._selected(peer["podSelector"], space)]
        for port in rule.get("ports", ()):
            if reached and "port" in port and not any(port["port"] in p.ports for p in reached):
                yield f"{direction} port {port['port']} is none of the pods it leads to"

    def _monitor_faults(self, kind: str, spec: Document, space: str) -> Iterator[str]:
        for label in spec.get("podTargetLabels", ()):
            if not any(label in pod.labels for pod in self._pods):
                yield f"podTargetLabels: no pod has {label}"
        endpoints = spec["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
        ports = {endpoint["port"] for endpoint in endpoints}
        if kind == "PodMonitor":
            yield from self._selector_faults(spec["selector"], space)
            return
        services = [
            document
            for document in self._documents
            if document["kind"] == "Service"
            and selects(spec["selector"], document["metadata"].get("labels", {}))
        ]
        if not services:
            yield f"no Service matches {_shown(spec['selector'])}"
        for service in services:
            if lacking := ports - {port.get("name") for port in service["spec"]["ports"]}:
                name = service["metadata"]["name"]
                yield f"Service {name} has no port {', '.join(sorted(lacking))}"


def _provided(document: Document) -> Iterator[tuple[tuple[str, str, str], frozenset[str] | None]]:
    """What an object is looked up by, and the keys it holds; None where they are not known."""
    kind, metadata = document["kind"], document["metadata"]
    space = metadata.get("namespace", "")
    keys = None
    if kind in ("ConfigMap", "Secret"):
        fields = ("data", "stringData", "binaryData")
        keys = frozenset(key for field in fields for key in document.get(field) or {})
    if kind == "Service":
        keys = frozenset(str(port["port"]) for port in document["spec"]["ports"])
    yield (kind, space, metadata["name"]), keys
    if kind == "ExternalSecret":
        target = document["spec"].get("target", {}).get("name", metadata["name"])
        keys = frozenset(item["secretKey"] for item in document["spec"].get("data", ()))
        yield ("Secret", space, target), None if "dataFrom" in document["spec"] else keys
    if kind == "SealedSecret":
        yield ("Secret", space, metadata["name"]), frozenset(document["spec"]["encryptedData"])


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes in these labels; an empty one takes in everything."""
    wanted = selector.get("matchLabels", {})
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    return all(_fits(term, labels) for term in selector.get("matchExpressions", ()))


def _fits(term: Document, labels: dict[str, str]) -> bool:
    value = labels.get(term["key"])
    match term["operator"]:
        case "In":
            return value in term["values"]
        case "NotIn":
            return value not in term["values"]
        case "Exists":
            return value is not None
        case _:
            return value is None


def _blocks(peer: Document) -> list[str]:
    block = peer.get("ipBlock")
    return [block["cidr"], *block.get("except", ())] if block else []


def _shown(selector: Document) -> str:
    terms = [f"{name}={value}" for name, value in selector.get("matchLabels", {}).items()]
    terms += [f"{term['key']} {term['operator']}" for term in selector.get("matchExpressions", ())]
    return ", ".join(terms)
