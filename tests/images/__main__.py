"""Build the images with buildah, run them, record size and time: `make test-images`.

The base is Debian with its Python, made by debootstrap. Images run in podman as a cluster would run
them: as user 10001, without capabilities, on a root file system that is read-only, with /tmp. What
this installs are Debian's packages of buildah, debootstrap and podman; what it builds it removes.
The trainer, with CUDA and vLLM, is built where it is asked for: it takes 40 GB of disk for a while.
Otherwise its packages are resolved. The rollout server is vLLM's own image, and is not built.

    make test-images                # operator, agent and sandbox
    python -m tests.images trainer  # one of them, or the trainer
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.images.building import Building, build, check_pins, install, make_base, remove
from tests.images.running import check

IMAGES = ("operator", "agent", "sandbox")
LARGE = ("trainer",)
RECORD = Path(__file__).parents[2] / "bench" / "results" / "images.json"


def main(images: list[str]) -> int:
    """Exit status: 1 where an image is not what it should be, which is said."""
    known = (*IMAGES, *LARGE)
    unknown = sorted(set(images) - set(known))
    if unknown:
        sys.exit(
            f"no image named {', '.join(unknown)} is built here; there are: {', '.join(known)}"
        )
    if os.geteuid() != 0:
        sys.exit("make test-images installs packages and builds a base, so it asks for root")
    install(("buildah", "debootstrap", "gcc", "podman", "runc"))
    built: dict[str, Building] = {}
    checked: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="toolwise-images-") as folder:
        try:
            checked["trainer's packages"] = check_pins(Path(folder))
            headers = "trainer" in images
            built[f"base{'-with-headers' * headers}"] = make_base(Path(folder), headers=headers)
            for image in images or IMAGES:
                built[image] = build(image, Path(folder))
                checked[image] = check(image)
        except (AssertionError, subprocess.CalledProcessError) as error:
            print(f"images: {error}", file=sys.stderr)
            return 1
        finally:
            remove()
    report(built, checked)
    return 0


def report(built: dict[str, Building], checked: dict[str, list[str]]) -> None:
    """Print what was measured and what was seen to hold, and record it.

    What the record says of images that were not built this time stays as it is.
    """
    table = Table("image", "MB", "build, s", "of it CPU, s", "seen to hold", title="images")
    for image, one in built.items():
        figures = (f"{one.megabytes:.0f}", f"{one.seconds:.0f}", f"{one.cpu_seconds:.0f}")
        table.add_row(image, *figures, "\n".join(checked.get(image, [])))
    for image in checked.keys() - built.keys():
        table.add_row(image, "", "not built", "", "\n".join(checked[image]))
    Console().print(table)
    figures = {
        f"{image} {name}": round(value, 1)
        for image, one in built.items()
        for name, value in one._asdict().items()
    }
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "figures": {**before.get("figures", {}), **figures},
        "seen to hold": {**before.get("seen to hold", {}), **checked},
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
