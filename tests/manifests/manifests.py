"""What every manifest of this project has to keep to, the chart's and those of `k8s/` alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from tests.manifests.operators import vocabulary_faults
from tests.manifests.pods import Pod, config_faults, pod_faults, pods
from tests.manifests.programs import program_faults
from tests.manifests.references import References
from tests.manifests.schemas import schema_faults

Document = dict[str, Any]

OUTSIDE = frozenset(
    {
        "RuntimeClass/gvisor",
        *(
            f"Namespace/{name}"
            for name in ("istio-system", "kube-system", "kubeflow", "monitoring")
        ),
    }
)
"""Made by whoever runs the cluster; see k8s/PREREQUISITES.md."""


def read(text: str) -> list[Document]:
    """The manifests in a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def check(documents: list[Document], outside: Collection[str] = ()) -> list[str]:
    """Everything that is wrong with a set of manifests that are applied together.

    Args:
        documents: the manifests, rendered.
        outside: objects they refer to that are made elsewhere, as `Kind/name`, or with the keys
            of a Secret as `Secret/name/key`; images of unknown programs as `Image/image`.

    Returns:
        One line a fault: the object, the field, what is wrong. Empty where nothing is.
    """
    faults = [*_duplicates(documents)]
    sound = []
    for document in documents:
        wrong = [*schema_faults(document)]
        faults += [f"{_named(document)}: {fault}" for fault in wrong]
        # What has the wrong shape cannot be read any further.
        if not wrong:
            sound.append(document)
    references = References(sound, {*OUTSIDE, *outside})
    for document in sound:
        wrong = (
            *vocabulary_faults(document),
            *_rule_faults(document),
            *references.document_faults(document),
        )
        faults += [f"{_named(document)}: {fault}" for fault in wrong]
        for pod in pods(document):
            wrong = (*pod_faults(pod), *references.pod_faults(pod))
            wrong = (*wrong, *_program_faults(pod, outside))
            faults += [f"{pod.owner}: {fault}" for fault in wrong]
    return faults


def _named(document: Document) -> str:
    return f"{document.get('kind')} {document.get('metadata', {}).get('name')}"


def _program_faults(pod: Pod, outside: Collection[str]) -> Iterator[str]:
    model = [{"name": "model", **pod.spec["model"]}] if "model" in pod.spec else []
    for container in (*pod.containers, *model):
        if f"Image/{container.get('image')}" not in outside:
            where = f"container {container['name']}"
            yield from (f"{where}: {fault}" for fault in program_faults(container))


def _duplicates(documents: list[Document]) -> Iterator[str]:
    named = Counter(
        (d.get("kind"), d["metadata"].get("namespace", ""), d["metadata"]["name"])
        for d in documents
        if "metadata" in d
    )
    for (kind, _, name), count in named.items():
        if count > 1:
            yield f"{kind} {name}: is there {count} times"


def _rule_faults(document: Document) -> Iterator[str]:
    kind = document["kind"]
    if kind == "ConfigMap":
        yield from config_faults(document)
    if kind in ("Role", "ClusterRole"):
        for rule in document.get("rules") or ():
            if "*" in (*rule.get("verbs", ()), *rule.get("resources", ()), *rule["apiGroups"]):
                yield "a rule with `*` gives more than anybody needs"
