"""`python -m tests.manifests`: the chart is linted, and all that a cluster would get is checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.manifests import kustomize
from tests.manifests.chart import OUTSIDE, VALUES, lint, render, values
from tests.manifests.manifests import check, read


def faults() -> Iterator[str]:
    """Everything that is wrong, with the file or folder it shows with."""
    for name in VALUES:
        given = values(name)
        wrong = lint(given) or check(render(given), OUTSIDE)
        yield from (f"charts/toolwise/{name}.yaml: {fault}" for fault in wrong)
    base = kustomize.faults(kustomize.written(kustomize.K8S / "base"))
    yield from (f"k8s/base: {fault}" for fault in base)
    for overlay in kustomize.OVERLAYS if kustomize.KUBECTL else ():
        folder = kustomize.K8S / overlay
        wrong = (*kustomize.patch_faults(folder), *kustomize.faults(kustomize.built(folder)))
        yield from (f"k8s/{overlay}: {fault}" for fault in wrong)
    endpoint = check(kustomize.written(kustomize.K8S / "endpoint"), kustomize.OUTSIDE)
    yield from (f"k8s/endpoint: {fault}" for fault in endpoint)
    for path in sorted((kustomize.K8S / "examples").glob("*.yaml")):
        wrong = check(read(path.read_text()), kustomize.OUTSIDE)
        yield from (f"k8s/examples/{path.name}: {fault}" for fault in wrong)


def unchecked() -> str:
    """What could not be checked here, and why, in one line; empty where nothing was left out."""
    if kustomize.KUBECTL:
        return ""
    left_out = ", ".join(f"k8s/{overlay}" for overlay in kustomize.OVERLAYS if overlay != "base")
    return f"NOT CHECKED: {left_out}: kubectl, which builds them, is not installed here"


if __name__ == "__main__":
    found = [*faults()]
    print(*found, sep="\n", end="\n" if found else "")
    # Last, where it is seen. A machine without kubectl is no reason to fail.
    if left_out := unchecked():
        print(left_out, file=sys.stderr)
    sys.exit(1 if found else 0)
