"""A vLLM server of one checkpoint, that lives as long as the work it answers for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, Field

from toolwise.agent.engine import Engine
from toolwise.child_process import child_process, free_port
from toolwise.errors import BackendError, InputError

POLL = 0.5
"""Seconds between two looks at whether the server answers."""
ENDING = 30.0
"""Seconds a server has to end by itself."""
SHOWN = 20
"""Last lines of its log that an error quotes."""


class VLLMSettings(BaseModel):
    """vLLM where a step's model answers, on the GPUs of the step's own pod or machine.

    Args:
        gpus: over which it spreads the model.
        memory: share of their memory that it takes.
        context_tokens: the longest conversation, images included; one that grows longer is cut.
        start_seconds: in which it has to have loaded the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: int = Field(default=1, ge=1)
    memory: float = Field(default=0.9, gt=0, lt=1)
    context_tokens: int = Field(default=24_576, ge=1)
    start_seconds: float = Field(default=1800.0, gt=0)


def serve_command(
    model: str, port: int, *, gpus: int, memory: float, context_tokens: int
) -> list[str]:
    """The command of a vLLM server whose log-probabilities are of what it has sampled from.

    Args:
        model: checkpoint folder.
        port: where it listens.
        gpus, memory, context_tokens: as of `VLLMSettings`.
    """
    return [
        "vllm",
        "serve",
        model,
        f"--port={port}",
        f"--tensor-parallel-size={gpus}",
        f"--gpu-memory-utilization={memory:g}",
        f"--max-model-len={context_tokens}",
        # Log-probabilities under the temperature that was sampled with, for importance weights.
        "--logprobs-mode=processed_logprobs",
        "--max-logprobs=-1",
    ]


@contextmanager
def opened_engine(model: Path, settings: VLLMSettings | None) -> Iterator[Engine]:
    """The engine of a checkpoint: in this process, or with settings by a vLLM of its own.

    Raises:
        InputError: `model` is no checkpoint, or vLLM is not installed.
        BackendError: vLLM does not start.
    """
    if settings is None:
        from toolwise.agent.transformers_engine import TransformersEngine  # imports torch

        yield TransformersEngine.load(model)
        return
    with vllm_process(model, settings) as address:
        yield engine_at(address, model)


def engine_at(address: str, model: Path) -> Engine:
    """The engine of a checkpoint that a vLLM server at `address` has loaded."""
    from toolwise.agent.processor import load_processor
    from toolwise.agent.vllm_engine import VLLMEngine
    from toolwise.agent.vllm_server import VLLMServer

    engine = VLLMEngine(VLLMServer(address), load_processor(model))
    engine.name = f"{model.name} by vLLM"  # the same wherever it is served
    return engine


@contextmanager
def vllm_process(model: Path, settings: VLLMSettings) -> Iterator[str]:
    """Address of a vLLM server that has loaded `model`; it ends with the block, or this process.

    Raises:
        InputError: vLLM is not installed.
        BackendError: it ended, or did not answer in time; quotes its last lines.
    """
    if shutil.which("vllm") is None:
        raise InputError(
            "the profile has models answer by vLLM, and there is no command `vllm` here: "
            "pip install vllm, or leave `vllm` out of the profile"
        )
    port = free_port()
    command = serve_command(
        str(model),
        port,
        gpus=settings.gpus,
        memory=settings.memory,
        context_tokens=settings.context_tokens,
    )
    with (
        tempfile.NamedTemporaryFile(prefix="vllm-", suffix=".log") as log,
        child_process("toolwise.agent.vllm_process:keep", {}) as connection,
    ):
        # This process's own variables: vLLM may be installed elsewhere, and the process between
        # has a PYTHONPATH.
        environment = os.environ | {"DO_NOT_TRACK": "1"}
        connection.send(([*command, "--host=127.0.0.1"], environment, log.name))
        address = f"http://127.0.0.1:{port}"
        _await(address, connection, Path(log.name), settings.start_seconds)
        yield address


def _await(address: str, connection: Connection, log: Path, seconds: float) -> None:
    """Come back as soon as the server answers."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):
            health = httpx.get(f"{address}/health", timeout=10, trust_env=False)
            if health.status_code == HTTPStatus.OK:
                return
        if connection.poll(POLL):
            status: int = connection.recv()
            raise BackendError(f"vLLM ended with status {status} before it answered:{_end(log)}")
        if time.monotonic() > deadline:
            raise BackendError(f"vLLM did not answer within {seconds:g} seconds:{_end(log)}")


def _end(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "".join(f"\n    {line}" for line in lines[-SHOWN:]) or " it has said nothing"


def keep(handle: int) -> None:
    """Run the command that comes by the connection at `handle` until that is closed.

    It is closed also by the death of the process at the other end, which must not leave a server
    that holds its GPUs. A command that ends before has its status sent back.
    """
    # The connection says when to end, and an exception in the middle of a wait could lock it up.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with Connection(handle) as connection, suppress(EOFError, BrokenPipeError):
        command, environment, log = connection.recv()
        with Path(log).open("wb") as file:
            # The processes it starts are of its group, and end with it.
            server = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            while server.poll() is None:
                if connection.poll(POLL):
                    connection.recv()
            connection.send(server.returncode)
        finally:
            _end_group(server)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(ENDING)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
