"""The base and the images, by buildah."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
REGISTRY = "localhost/toolwise"
TAG = "check"
BASE = f"{REGISTRY}/base:{TAG}"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
DEBIAN = "http://deb.debian.org/debian"
# Without a daemon, and without rights to nest containers; each image from nothing but the base.
ENVIRONMENT = {"BUILDAH_ISOLATION": "chroot", "BUILDAH_LAYERS": "false"}


class Building(NamedTuple):
    """What an image is and took.

    Args:
        megabytes: of its layers, uncompressed (10⁶ bytes), the base's included.
        seconds: to build it, downloads included.
        cpu_seconds: of them, how much of one core's time.
    """

    megabytes: float
    seconds: float
    cpu_seconds: float


def install(packages: Sequence[str]) -> None:
    """Install the Debian packages that are missing."""
    missing = [package for package in packages if shutil.which(package) is None]
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, check=True)


def make_base(folder: Path, *, headers: bool = False) -> Building:
    """Debian 12 with Python 3.11, as `BASE`.

    It trusts the certificates that this machine trusts, so that builds reach what it reaches.

    Args:
        folder: scratch space.
        headers: with those of Python, which the trainer's compiler needs.
    """
    clock = Clock()
    root = folder / "root"
    wanted = f"--include=python3,python3-venv,ca-certificates{',python3-dev' * headers}"
    # It mounts /proc in there, which goes with it also where it is killed.
    alone = ("unshare", "--mount", "--propagation", "private")
    run(*alone, "debootstrap", "--variant=minbase", wanted, "bookworm", str(root), DEBIAN)
    for part in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / part)
        (root / part).mkdir()
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", "--quiet", container, str(root), "/")
    run("buildah", "commit", "--quiet", "--format=docker", "--rm", container, BASE)
    shutil.rmtree(root)
    return clock.building(BASE)


def build(image: str, folder: Path) -> Building:
    """One image, by `make images` with buildah, on `BASE`."""
    clock = Clock()
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("docker", "podman"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    index = folder / "pip.conf"
    index.write_text(f"[global]\ncert = {CERTIFICATES}\ntimeout = 180\n")
    path = f"{tools}:{os.environ['PATH']}"
    named = (f"IMAGES={image}", f"REGISTRY={REGISTRY}", f"TAG={TAG}")
    given = (f"BASE={BASE}", f"PIP_CONF={index}")
    print(f"building {image}", flush=True)
    run("make", "--silent", "images", *named, *given, PATH=path)
    return clock.building(reference(image))


def check_pins(folder: Path) -> list[str]:
    """What was seen to hold of the trainer's packages, without fetching one.

    Raises:
        AssertionError: `constraints-trainer.txt` is not what it would be made to now.
        CalledProcessError: its packages do not resolve.
    """
    pins = ROOT / "constraints-trainer.txt"
    resolved = folder / pins.name
    shutil.copy(pins, resolved)
    run("make", "--silent", "pin-trainer", f"PINS={resolved}")
    if resolved.read_text() != pins.read_text():
        raise AssertionError(f"{pins.name} is out of date: make pin-trainer")
    return [f"its packages resolve, to the versions of {pins.name} and no other package"]


def reference(image: str) -> str:
    """The name an image has here."""
    return f"{REGISTRY}/{image}:{TAG}"


def remove() -> None:
    """Remove what was built, and what builds left."""
    run("buildah", "rm", "--all")
    listed = run("buildah", "images", "--quiet", "--filter", f"reference={REGISTRY}/*:{TAG}")
    if listed.strip():
        run("buildah", "rmi", "--force", *set(listed.split()))
    run("buildah", "rmi", "--prune", "--force")


def run(*command: str, **environment: str) -> str:
    """What the command prints; what it says beside is shown where it fails.

    Raises:
        CalledProcessError: it fails.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", flush=True)
    done.check_returncode()
    return done.stdout


class Clock:
    """Time from here on, and what child processes took of it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._used = self._children()

    def building(self, name: str) -> Building:
        """What the image `name` is and took until now."""
        megabytes = layer_bytes(name) / 1e6
        return Building(megabytes, time.monotonic() - self._began, self._children() - self._used)

    @staticmethod
    def _children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


def layer_bytes(name: str) -> int:
    """Bytes of an image's layers."""
    return int(run("podman", "image", "inspect", "--format", "{{.Size}}", name))
