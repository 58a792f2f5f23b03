"""Run the storage and tracking tests against real services: `make test-services`.

Installs PostgreSQL 15 and Swift with its S3 interface from Debian's packages where they are
missing, starts them in a temporary folder on free ports of this machine, starts nothing else, and
stops them afterwards. Installing and starting ask for root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PACKAGES = (
    "postgresql-15",
    "memcached",
    "swift-proxy",
    "swift-account",
    "swift-container",
    "swift-object",
)
TESTS = (
    "tests/integration/test_storage_s3.py",
    "tests/integration/test_tracking.py",
    "tests/integration/test_tracking_away.py",
    "tests/integration/test_tracking_served.py",
    "tests/integration/test_registry.py",
    "tests/integration/test_succession.py",
    "tests/integration/test_model_card.py",
    "tests/integration/test_promote_command.py",
    "tests/integration/test_compare.py",
)
POSTGRES = Path("/usr/lib/postgresql/15/bin")
START_SECONDS = 120.0
ROOT = Path(__file__).parents[2]


def main() -> int:
    """Exit status of pytest."""
    if os.geteuid() != 0:
        print(
            "make test-services installs and starts services, so it asks for root", file=sys.stderr
        )
        return 1
    install()
    with ExitStack() as stack:
        # Servers drop root's rights, so they have to be able to enter.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toolwise-services-")))
        folder.chmod(0o755)
        database = stack.enter_context(postgresql(folder / "postgresql"))
        endpoint = stack.enter_context(swift(folder / "swift"))
        environment = os.environ | {
            "TOOLWISE_TEST_POSTGRES": database,
            "TOOLWISE_TEST_S3": endpoint,
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
        print(f"PostgreSQL 15 and Swift are up; storage and tracking tests against {endpoint}")
        command = [sys.executable, "-m", "pytest", *(sys.argv[1:] or TESTS)]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode


def install() -> None:
    """Install the packages that are missing, without letting them start anything."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *PACKAGES],
        capture_output=True,
        text=True,
    ).stdout
    present = {line.split()[0] for line in shown.splitlines() if line.endswith(" installed")}
    missing = [package for package in PACKAGES if package not in present]
    if not missing:
        return
    print(f"installing {', '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, check=True)


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A new cluster with a database `mlflow`; yields its address."""
    port = free_port()
    folder.mkdir()
    shutil.chown(folder, "postgres")
    data = folder / "data"
    subprocess.run(
        [POSTGRES / "initdb", "-D", data, "-A", "trust", "-U", "toolwise", "-E", "UTF8"],
        check=True,
        stdout=subprocess.DEVNULL,
        user="postgres",
        cwd=folder,
    )
    options = ("-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off")
    with process(
        [POSTGRES / "postgres", "-D", data, "-p", str(port), *options], folder, "postgres"
    ):
        wait_until(lambda: answers(port), "PostgreSQL")
        url = f"postgresql://toolwise@127.0.0.1:{port}"
        create = ["psql", f"{url}/postgres", "-q", "-c", "CREATE DATABASE mlflow"]
        wait_until(
            lambda: subprocess.run(create, stderr=subprocess.DEVNULL).returncode == 0,
            "the database",
        )
        yield f"postgresql+psycopg://toolwise@127.0.0.1:{port}/mlflow"


@contextmanager
def swift(folder: Path) -> Iterator[str]:
    """Object storage on one disk; yields the address of its S3 interface."""
    ports = {name: free_port() for name in ("account", "container", "object", "proxy", "memcached")}
    (folder / "devices" / "disk").mkdir(parents=True)
    for name in ("account", "container", "object"):
        builder = folder / f"{name}.builder"
        device = f"r1z1-127.0.0.1:{ports[name]}/disk"
        for arguments in (("create", "4", "1", "1"), ("add", device, "1"), ("rebalance",)):
            subprocess.run(
                ["swift-ring-builder", builder, *arguments], check=True, stdout=subprocess.DEVNULL
            )
        (folder / f"{name}-server.conf").write_text(
            STORAGE_SERVER.format(name=name, port=ports[name], folder=folder)
        )
    (folder / "proxy-server.conf").write_text(
        PROXY_SERVER.format(port=ports["proxy"], folder=folder, memcached=ports["memcached"])
    )
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, "swift", "swift")
    with ExitStack() as stack:
        memory = ["memcached", "-l", "127.0.0.1", "-p", str(ports["memcached"]), "-u", "memcache"]
        stack.enter_context(process(memory, folder))
        for name in ("account", "container", "object", "proxy"):
            server = [f"swift-{name}-server", folder / f"{name}-server.conf"]
            stack.enter_context(process(server, folder))
        for name, port in ports.items():
            wait_until(lambda port=port: answers(port), f"Swift's {name}")
        yield f"http://127.0.0.1:{ports['proxy']}"


STORAGE_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = swift
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_name = {name}

[pipeline:main]
pipeline = {name}-server

[app:{name}-server]
use = egg:swift#{name}
"""

PROXY_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = swift
swift_dir = {folder}

[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth bulk slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin

[filter:bulk]
use = egg:swift#bulk

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo
"""


@contextmanager
def process(command: Sequence[str | Path], folder: Path, user: str | None = None) -> Iterator[None]:
    """A server that runs while the block does; its words go to a log in `folder`."""
    log = folder / f"{Path(command[0]).name}.log"
    account = pwd.getpwnam(user) if user else None
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            start_new_session=True,
        )
    try:
        yield
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Come back as soon as it is ready; exits where that takes too long."""
    end = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"{what} did not start within {START_SECONDS:g} s")
        time.sleep(0.1)


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
