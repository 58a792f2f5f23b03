"""What every manifest of this project has to keep to, the chart's and those of `k8s/` alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from tests.manifests.pods import pod_faults, pods
from tests.manifests.references import References
from tests.manifests.schemas import schema_faults

Document = dict[str, Any]

OUTSIDE = frozenset({"RuntimeClass/gvisor"})
"""Made by whoever runs the cluster; see k8s/PREREQUISITES.md."""


def read(text: str) -> list[Document]:
    """The manifests in a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def check(documents: list[Document], outside: Collection[str] = ()) -> list[str]:
    """Everything that is wrong with a set of manifests that are applied together.

    Args:
        documents: the manifests, rendered.
        outside: objects they refer to that are made elsewhere, as `Kind/name`; pods that their
            selectors match, as `Pod/label=value`.

    Returns:
        One line a fault: the object, the field, what is wrong. Empty where nothing is.
    """
    faults = [*_duplicates(documents)]
    references = References(documents, {*OUTSIDE, *outside})
    for document in documents:
        name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
        if wrong := [*schema_faults(document)]:
            # What has the wrong shape cannot be read any further.
            faults += [f"{name}: {fault}" for fault in wrong]
            continue
        wrong = (*_rule_faults(document), *references.document_faults(document))
        faults += [f"{name}: {fault}" for fault in wrong]
        for pod in pods(document):
            wrong = (*pod_faults(pod), *references.pod_faults(pod))
            faults += [f"{pod.owner}: {fault}" for fault in wrong]
    return faults


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
    if kind in ("Role", "ClusterRole"):
        for rule in document.get("rules") or ():
            if "*" in (*rule.get("verbs", ()), *rule.get("resources", ()), *rule["apiGroups"]):
                yield "a rule with `*` gives more than anybody needs"
