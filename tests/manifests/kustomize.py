"""What `k8s/` holds, as it stands in its files and as kubectl builds it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

from tests.manifests.manifests import Document, check, read

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("base", "overlays/kind", "overlays/gpu")
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


def faults(documents: list[Document]) -> list[str]:
    """What is wrong with the base or an overlay."""
    # A TrainJob's pods are in the job's namespace, their runtime in none.
    claims = [d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"]
    return check(documents, {f"PersistentVolumeClaim/{name}" for name in claims})
