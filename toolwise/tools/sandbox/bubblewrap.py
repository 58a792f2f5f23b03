"""The command line that starts a sandbox: what it sees, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from toolwise.errors import BackendError

INSIDE = Path(__file__).parent / "inside"
PACKAGES = {"PIL": "pillow.libs", "numpy": "numpy.libs"}
DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
"""No terminals and no shared memory, where sessions could meet; /dev/zero maps as such."""
FOLDERS = ("/tmp", "/usr", "/opt", "/opt/packages", "/opt/toolwise")
LINKER = ("/etc/ld.so.cache", "/etc/alternatives")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
MISSING = (
    "the python tool needs bubblewrap and there is no `bwrap` on PATH; "
    "install it: apt-get install bubblewrap"
)


def command() -> list[str]:
    """bwrap and its arguments, up to and including the interpreter.

    Raises:
        BackendError: bubblewrap is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise BackendError(MISSING)
    namespaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    if os.geteuid() == 0:
        # Root keeps its user namespace until the supervisor becomes an unprivileged user in it:
        # mapped to root, as bwrap would, RLIMIT_NPROC would not bind. Sessions get their own.
        powers = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        namespaces += ["--unshare-user"]
        powers = ["--cap-drop", "ALL"]
    python, prefix_binds = _interpreter()
    return [
        bwrap,
        *namespaces,
        "--unshare-cgroup-try",
        *powers,
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        *_environment(),
        *(part for folder in FOLDERS for part in ("--dir", folder)),
        *_system_folders(),
        *prefix_binds,
        *_packages(),
        *("--ro-bind", str(INSIDE), "/opt/toolwise/inside"),
        *("--proc", "/proc", "--dir", "/dev"),
        *(part for device in DEVICES for part in ("--dev-bind", device, device)),
        *("--remount-ro", "/", *_host_name(bwrap), "--chdir", "/"),
        python,
    ]


@cache
def _host_name(bwrap: str) -> tuple[str, ...]:
    """A host name of its own, where a container that we are in allows it."""
    name = ("--hostname", "sandbox")
    user = () if os.geteuid() == 0 else ("--unshare-user",)
    tried = [bwrap, *user, "--unshare-uts", *name, "--ro-bind", "/", "/", "true"]
    return name if subprocess.run(tried, capture_output=True).returncode == 0 else ()


def bare_environment() -> dict[str, str]:
    """The environment of a supervisor that runs without bubblewrap (isolation `none`)."""
    return {**ENVIRONMENT, "PYTHONPATH": f"{INSIDE.parent}"}


def _environment() -> list[str]:
    values = {
        **ENVIRONMENT,
        "HOME": "/tmp",
        "PYTHONPATH": "/opt/toolwise:/opt/packages",
        "LD_LIBRARY_PATH": "/opt/python/lib",
    }
    return [part for name, value in values.items() for part in ("--setenv", name, value)]


def _system_folders() -> list[str]:
    """What the distribution put into /usr, and beside it what a merged /usr has links for."""
    parts = [Path("/usr/bin"), *sorted(Path("/usr").glob("lib*")), Path("/usr/share")]
    arguments = [word for part in parts for word in ("--ro-bind-try", str(part), str(part))]
    for folder in [*sorted(Path("/").glob("lib*")), Path("/bin")]:
        if folder.is_symlink():
            arguments += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            arguments += ["--ro-bind", str(folder), str(folder)]
    for path in LINKER:
        arguments += ["--ro-bind-try", path, path]
    return arguments


def _interpreter() -> tuple[str, list[str]]:
    """This interpreter's path inside; a prefix other than /usr (pyenv, conda) is bound to /opt."""
    executable = Path(sys.executable).resolve()
    prefix = Path(sys.base_prefix).resolve()
    if prefix == Path("/usr"):
        return str(executable), []
    inside = Path("/opt/python") / executable.relative_to(prefix)
    return str(inside), ["--ro-bind", str(prefix), "/opt/python"]


def _packages() -> list[str]:
    """PIL and numpy with their bundled libraries, and nothing else of site-packages."""
    arguments: list[str] = []
    for package, libraries in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise BackendError(
                f"the python tool needs the package {package} and it isn't installed"
            )
        folder = Path(spec.origin).parent
        for part in (folder, *folder.parent.glob(libraries)):
            arguments += ["--ro-bind", str(part), f"/opt/packages/{part.name}"]
    return arguments
