"""What `k8s/` holds, as it stands in its files and as kubectl builds it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.manifests.manifests import Document, check, read

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("base", "overlays/kind", "overlays/gpu")
OUTSIDE = frozenset(
    {
        "Secret/toolwise-storage/AWS_ACCESS_KEY_ID",
        "Secret/toolwise-storage/AWS_ENDPOINT_URL_S3",
        "Secret/toolwise-storage/AWS_SECRET_ACCESS_KEY",
        "Service/toolwise-sandbox",
        "ServiceAccount/toolwise-models",
        "ServingRuntime/kserve-huggingfaceserver",
    }
)
"""What an endpoint refers to: the chart makes it, `base`, or whoever runs the cluster."""
KUBECTL = shutil.which("kubectl")
"""Builds the overlays, from kubectl 1.21 on."""


class Refused(Exception):
    """kubectl does not build it."""


def built(folder: Path) -> list[Document]:
    """What `kubectl kustomize` makes of a folder; needs `KUBECTL`."""
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return read(done.stdout)


def written(folder: Path) -> list[Document]:
    """The manifests of a folder as they stand in its files."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [document for name in listed for document in read((folder / name).read_text())]


def patch_faults(folder: Path) -> Iterator[str]:
    """Patches whose target is not there: kustomize passes over these in silence."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    folders = (folder / name for name in content["resources"])
    below = [d for each in folders if each.is_dir() for d in built(each)]
    for patch in content.get("patches", ()):
        # Without a target the patch names its object, and kustomize refuses one that is not there.
        if (target := patch.get("target")) and not any(_is_target(target, d) for d in below):
            yield f"no object is the target {target} of a patch"


def _is_target(target: dict[str, str], document: Document) -> bool:
    group, _, version = document["apiVersion"].rpartition("/")
    found = {"group": group, "version": version, "kind": document["kind"], **document["metadata"]}
    return all(re.fullmatch(pattern, found.get(name, "")) for name, pattern in target.items())


def faults(documents: list[Document]) -> list[str]:
    """What is wrong with the base or an overlay."""
    # A TrainJob's pods are in the job's namespace, their runtime in none.
    claims = [d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"]
    return check(documents, {f"PersistentVolumeClaim/{name}" for name in claims})
