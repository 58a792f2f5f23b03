"""`python -m tests.manifests`: the chart is linted, and all that a cluster would get is checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.manifests import kustomize
from tests.manifests.chart import OUTSIDE, VALUES, lint, render, values
from tests.manifests.manifests import check


def faults() -> Iterator[str]:
    """Everything that is wrong, with the file or folder it shows with."""
    for name in VALUES:
        given = values(name)
        wrong = lint(given) or check(render(given), OUTSIDE)
        yield from (f"charts/toolwise/{name}.yaml: {fault}" for fault in wrong)
    base = kustomize.faults(kustomize.written(kustomize.K8S / "base"))
    yield from (f"k8s/base: {fault}" for fault in base)
    if kustomize.KUBECTL is None:
        print("kubectl is missing: the overlays in k8s/ are not built", file=sys.stderr)
        return
    for overlay in kustomize.OVERLAYS:
        wrong = kustomize.faults(kustomize.built(kustomize.K8S / overlay))
        yield from (f"k8s/{overlay}: {fault}" for fault in wrong)


if __name__ == "__main__":
    found = [*faults()]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)
