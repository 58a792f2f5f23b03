"""Images at work, as restricted as a cluster has them."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.images.building import reference, run
from tests.integration.scripted_server import ScriptedServer, call

PODMAN = ("podman", "--runtime=runc", "--cgroup-manager=cgroupfs")
# What the pod security standard "restricted" asks for, under the runtime's own syscall filter. The
# rest is for machines that may not raise limits, and have no systemd to time health checks.
RESTRICTED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs=/tmp:rw,mode=1777",
    "--user=10001:10001",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=host",
    "--ulimit=nofile=4096:4096",
    "--ulimit=nproc=4096:4096",
    "--no-healthcheck",
)
PORT = 8080
"""Where servers listen by themselves, and where their health checks ask."""
START_SECONDS = 600.0

LOOKING = """
import importlib.util, json, os, pathlib, shutil

def writable(folder):
    try:
        (pathlib.Path(folder) / "probe").touch()
    except OSError:
        return False
    return True

print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "home": os.environ["HOME"],
    "writable": [f for f in ("/", "/etc", "/opt/venv", "/usr", "/var", "/tmp") if writable(f)],
    "build tools": [t for t in ("gcc", "cc", "g++", "make", "ld", "pip", "git") if shutil.which(t)],
    "torch": importlib.util.find_spec("torch") is not None,
    "listed": len(json.loads(pathlib.Path("/opt/venv/packages.json").read_text())["installed"]) > 5,
    "dpkg": pathlib.Path("/var/lib/dpkg/status").stat().st_size > 0,
}))
"""
FOUND = {
    "user": [10001, 10001],
    "home": "/tmp",
    "writable": ["/tmp"],
    "build tools": [],
    "torch": False,
    "listed": True,
    "dpkg": True,
}
PREPARE = """
from toolwise.profile import load_profile
from toolwise.steps import run_step
made = run_step("prepare-data", load_profile("smoke").data.model_dump_json(), 0)
print("made", *sorted(made.outputs))
"""
TRAIN = """
from toolwise.profile import load_profile
from toolwise.steps import run_step
base = load_profile("smoke").base
settings = base.model_copy(update={"train": base.train.model_copy(update={"steps": 2})})
model = run_step("base-model", settings.model_dump_json(), 0).outputs["model"]
print("made", *sorted(file.name for file in model.iterdir()))
"""
IMPORT = "import torch, trl, vllm; print('CUDA', torch.version.cuda, 'vLLM', vllm.__version__)"
DRIVER = """
import triton.backends.nvidia.driver
triton.backends.nvidia.driver.CudaUtils()
print("loaded")
"""
SYMBOLS = """
import pathlib, re, triton.backends.nvidia.driver as driver
source = pathlib.Path(driver.dirname, "driver.c").read_text()
print(*sorted(set(re.findall(r"\\bcu[A-Z][A-Za-z0-9]*", source))))
"""


def check(image: str) -> list[str]:
    """What was seen to hold of an image.

    Raises:
        AssertionError: something does not.
        CalledProcessError: it fails to run.
    """
    config = configuration(image)
    expect(image, config["User"], "10001:10001")
    expect(image, config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0")
    expect(image, "Healthcheck" in config, image in ("agent", "sandbox"))
    looked = run(
        *PODMAN, "run", "--rm", *RESTRICTED, "--entrypoint=python", reference(image), "-c", LOOKING
    )
    expect(image, json.loads(looked), FOUND | {"torch": image == "trainer"})
    without = "compiler or pip" if image == "trainer" else "compiler, pip or torch"
    held = [
        "user 10001; nothing but /tmp can be written",
        f"no {without}; lists of packages are there",
    ]
    checks = {"operator": operator, "agent": agent, "sandbox": sandbox, "trainer": trainer}
    return held + checks[image]()


def configuration(image: str) -> dict[str, Any]:
    """What an image says of itself, as Docker has it."""
    return json.loads(run("buildah", "inspect", "--type=image", reference(image)))["Docker"][
        "config"
    ]


def operator() -> list[str]:
    """The command line, and a step."""
    image = (*PODMAN, "run", "--rm", *RESTRICTED)
    helped = run(*image, reference("operator"), "--help")
    expect("operator", "Train, prove, promote and serve" in " ".join(helped.split()), True)
    compiled = run(
        *image, reference("operator"), "compile", "--profile=qwen3-vl-8b", "--out=/tmp/p.yaml"
    )
    expect("operator", compiled.strip(), "Wrote /tmp/p.yaml")
    tracked = "--env=MLFLOW_TRACKING_URI=sqlite:////tmp/mlflow.db"
    step = run(*image, tracked, "--entrypoint=python", reference("operator"), "-c", PREPARE)
    expect("operator", "made benchmark corpus tasks trajectories" in step, True)
    return ["toolwise --help", "toolwise compile --profile qwen3-vl-8b", "the step prepare-data"]


def trainer() -> list[str]:
    """Two steps of training, on the CPU; vLLM, and Triton's module as the image has it compiled."""
    image = (*PODMAN, "run", "--rm", *RESTRICTED, "--shm-size=1g")
    tracked = "--env=MLFLOW_TRACKING_URI=sqlite:////tmp/mlflow.db"
    python = ("--entrypoint=python", reference("trainer"), "-c")
    trained = run(*image, tracked, *python, TRAIN)
    expect("trainer", "model.safetensors" in trained, True)
    versions = run(*image, *python, IMPORT).splitlines()[-1]
    with tempfile.TemporaryDirectory() as folder:
        # In place of the library that comes with a GPU's driver: the functions, which do nothing.
        functions = run(*image, *python, SYMBOLS).split()
        source = Path(folder, "libcuda.c")
        source.write_text("".join(f"void {function}(void) {{}}\n" for function in functions))
        run("gcc", "-shared", "-o", f"{folder}/libcuda.so.1", str(source))
        Path(folder).chmod(0o755)
        mounted = (f"--volume={folder}:/driver:ro", "--env=LD_LIBRARY_PATH=/driver")
        libcuda = "--env=TRITON_LIBCUDA_PATH=/driver"
        loaded = run(*image, *mounted, libcuda, *python, DRIVER)
    expect("trainer", loaded.split(), ["loaded"])
    return [
        "the step base-model, on the CPU",
        f"torch, TRL and vLLM are imported: {versions}",
        "Triton finds the module of its driver, and compiles nothing",
    ]


def sandbox() -> list[str]:
    """Sessions over HTTP: as restricted, and by bubblewrap, to which /proc has to be open."""
    run_code("--isolation=none", RESTRICTED)
    run_code("--isolation=bubblewrap", (*RESTRICTED, "--security-opt=unmask=/proc/*"))
    return [
        "its health check",
        "python over HTTP, with state between calls",
        "the same in bubblewrap, where /proc is not masked",
    ]


def run_code(isolation: str, restricted: Sequence[str]) -> None:
    """Two calls of a session, the second with what the first left."""
    with container("sandbox", "/health", isolation, restricted=restricted) as http:
        session = http.post("/sessions", json={"images": []}).raise_for_status().json()["id"]
        calls = [
            http.post(f"/sessions/{session}/calls", json={"code": code}).raise_for_status().json()
            for code in ("import numpy\nn = numpy.arange(9).sum()", "print(n)")
        ]
        expect(
            "sandbox",
            [(c["is_error"], c["text"].strip()) for c in calls],
            [(False, ""), (False, "36")],
        )


def agent() -> list[str]:
    """The endpoint in front of a server that calls python once and answers."""
    script = f"{call('python', code='print(6 * 7)')}|<answer>42</answer>"
    with ScriptedServer(script=script) as upstream:
        options = ("--name=metis", f"--upstream={upstream.url}", "--isolation=none")
        with container("agent", "/v1/models/metis", *options) as http:
            for path in ("/v2/health/live", "/v2/health/ready", "/openai/v1/models", "/metrics"):
                http.get(path).raise_for_status()
            asked = {"model": "metis", "messages": [{"role": "user", "content": "6 times 7?"}]}
            answered = (
                http.post("/openai/v1/chat/completions", json=asked).raise_for_status().json()
            )
            expect("agent", "42" in answered["choices"][0]["message"]["content"], True)
            expect("agent", answered["toolwise"]["calls"][0]["result"].strip(), "42")
    return ["its health check, models, metrics", "a chat completion that calls python"]


@contextmanager
def container(
    image: str, ready: str, *options: str, restricted: Sequence[str] = RESTRICTED
) -> Iterator[httpx.Client]:
    """A server in a container, once `ready` answers; it has to end by itself on SIGTERM."""
    name = run(*PODMAN, "run", "--detach", *restricted, reference(image), *options).strip()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120) as http:
            await_answer(http, ready, name)
            run(*PODMAN, "exec", name, *configuration(image)["Healthcheck"]["Test"][1:])
            yield http
        run(*PODMAN, "stop", "--time=60", name)
        ended = run(*PODMAN, "inspect", "--format={{.State.ExitCode}}", name).strip()
        expect(image, ended, "0")
    finally:
        subprocess.run([*PODMAN, "rm", "--force", name], capture_output=True)


def await_answer(http: httpx.Client, path: str, name: str) -> None:
    """Come back as soon as the server answers."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if http.get(path).is_success:
                return
        except httpx.TransportError:
            pass
        running = run(*PODMAN, "inspect", "--format={{.State.Running}}", name).strip()
        if running != "true" or time.monotonic() > end:
            logs = subprocess.run([*PODMAN, "logs", name], capture_output=True, text=True)
            raise AssertionError(f"{path} does not answer: {logs.stdout}{logs.stderr}")
        time.sleep(0.2)


def expect(image: str, found: Any, wanted: Any) -> None:
    """Raises `AssertionError` where an image is not as wanted."""
    if found != wanted:
        raise AssertionError(f"{image}: {found!r}, not {wanted!r}")
