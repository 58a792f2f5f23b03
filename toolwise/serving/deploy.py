"""Deploy a checkpoint as a local server process, and ask it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from toolwise.agent import user_message
from toolwise.data import Task, data_uri, grade
from toolwise.errors import BackendError, InputError, ToolwiseError
from toolwise.serving.asking import asking
from toolwise.serving.settings import ServingSettings
from toolwise.storage import atomic_file

LOG = "server.log"
PROCESS = "server.json"
REVISION = "deployed.json"
"""File with what answered when it was tried, and is served again where the next one does not."""

_READY_SECONDS = 180.0
_POLL_SECONDS = 0.2
_KILL_SECONDS = 5.0
_CLOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server: base URL for OpenAI clients, model name, process id where it is known."""

    url: str
    model: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the endpoint answered, and the `toolwise` field that tells how."""

    answer: str
    toolwise: dict[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class Asked:
    """One benchmark task put to the endpoint."""

    task_id: str
    question: str
    expected: str
    answer: str
    correct: bool
    tool_calls: int
    seconds: float


class _Revision(BaseModel):
    """What a server was started from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    corpus: Path | None
    settings: ServingSettings


def deploy_local(
    model_dir: Path,
    corpus: Path | None,
    run_dir: Path,
    settings: ServingSettings,
    attempt: Callable[[Endpoint], None],
    ready_seconds: float = _READY_SECONDS,
) -> Endpoint:
    """Start a server that outlives this process, and the one before again where it does not work.

    The port is the same, so the server deployed from `run_dir` before is stopped first. Its log and
    its process file stand in `run_dir`.

    Args:
        model_dir: the checkpoint.
        corpus: what `text_search` searches.
        run_dir: where the server's files stand.
        settings: the endpoint.
        attempt: tries the endpoint once it is ready; what it raises undoes the deployment.
        ready_seconds: how long the server may take to become ready.

    Raises:
        InputError: the server refuses its arguments (port taken, no such model).
        BackendError: it ended or was not ready in time, with the log's tail, or the attempt failed.
            Like the other, it says what is served instead.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    record = run_dir / REVISION
    before = record.read_bytes() if record.exists() else None
    _end(run_dir)
    (run_dir / LOG).unlink(missing_ok=True)
    revision = _Revision(
        model=model_dir.absolute(), corpus=corpus and corpus.absolute(), settings=settings
    )
    try:
        endpoint = _start(revision, run_dir, ready_seconds)
        attempt(endpoint)
    except Exception as error:
        undone = _put_back(before, run_dir, ready_seconds)
        failed = InputError if isinstance(error, InputError) else BackendError
        raise failed(f"the endpoint does not work: {error}\n{undone}") from error
    with atomic_file(record) as partial:
        partial.write_text(revision.model_dump_json())
    return endpoint


def _put_back(before: bytes | None, run_dir: Path, ready_seconds: float) -> str:
    """Undo a deployment; says in words how that went."""
    _end(run_dir)
    if before is None:
        return "There was none before it; nothing is served."
    try:
        _start(_Revision.model_validate_json(before), run_dir, ready_seconds)
    except (ToolwiseError, ValidationError) as error:
        return f"Putting the previous revision back failed as well: {error}"
    return "The previous revision is back and ready."


def _start(revision: _Revision, run_dir: Path, ready_seconds: float) -> Endpoint:
    settings = revision.settings
    command = [sys.executable, "-m", "toolwise.serving", "--model-dir", str(revision.model)]
    if revision.corpus is not None:
        command += ["--corpus", str(revision.corpus)]
    for option in settings.options().items():
        command += option
    log_path = run_dir / LOG
    with log_path.open("ab") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = psutil.Process(server.pid)
    known = {
        "pid": server.pid,
        "created": process.create_time(),
        "grace_seconds": settings.request_seconds + _KILL_SECONDS,
    }
    with atomic_file(run_dir / PROCESS) as partial:
        partial.write_text(json.dumps(known))
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    origin = f"http://{host}:{settings.port}"
    deadline = time.monotonic() + ready_seconds
    while not (_listens(process, settings.port) and _is_ready(origin, settings.name)):
        if server.poll() is not None:
            (run_dir / PROCESS).unlink()
            failed = InputError if server.returncode == 2 else BackendError
            raise failed(f"the model server ended at its start; {_tail(log_path)}")
        if time.monotonic() > deadline:
            _end(run_dir)
            raise BackendError(
                f"the model server was not ready within {ready_seconds:.0f} s; {_tail(log_path)}"
            )
        time.sleep(_POLL_SECONDS)
    return Endpoint(f"{origin}/openai/v1", settings.name, server.pid)


def stop_local(run_dir: Path) -> bool:
    """Stop the server deployed from `run_dir`, letting it finish what it has; whether one ran."""
    (run_dir / REVISION).unlink(missing_ok=True)
    return _end(run_dir)


def _end(run_dir: Path) -> bool:
    process = _deployed(run_dir)
    record = run_dir / PROCESS
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            try:
                process.wait(json.loads(record.read_text())["grace_seconds"])
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(_KILL_SECONDS)
    record.unlink(missing_ok=True)
    return process is not None


def is_deployed(run_dir: Path) -> bool:
    """Whether the server deployed from `run_dir` is running."""
    return _deployed(run_dir) is not None


def _deployed(run_dir: Path) -> psutil.Process | None:
    record = run_dir / PROCESS
    if not record.exists():
        return None
    known = json.loads(record.read_text())
    try:
        process = psutil.Process(known["pid"])
        # Process ids are used again; the clock that dates a process may be off by a second.
        same = abs(process.create_time() - known["created"]) < _CLOCK_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def ask(
    endpoint: Endpoint, question: str, images: Sequence[bytes] = (), tools: str = "auto"
) -> Reply:
    """Ask the endpoint one question, greedily.

    Args:
        endpoint: a running server.
        question: the text.
        images: encoded images to go with it.
        tools: `auto`, or `none` to keep the model from calling any.

    Raises:
        BackendError: the endpoint could not be reached or failed, or is not Toolwise's.
        InputError: it refuses the request.
    """
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images
    ]
    parts.append({"type": "text", "text": question})
    started = time.perf_counter()
    with asking(endpoint.url) as client:
        reply = client.chat.completions.create(
            model=endpoint.model,
            messages=[{"role": "user", "content": parts}],
            extra_body={"tools": tools},
        )
    seconds = time.perf_counter() - started
    done = (reply.model_extra or {}).get("toolwise")
    if done is None:
        raise BackendError(
            f"{endpoint.url} answers without the field `toolwise`; another server is there"
        )
    return Reply(reply.choices[0].message.content or "", done, round(seconds, 3))


def ask_two(endpoint: Endpoint, direct: Task, needs_tool: Task, out: Path) -> list[Asked]:
    """Ask one task that needs no tool and one that does; write address and answers to `out`.

    Raises:
        BackendError: the endpoint could not be reached or failed.
    """
    answers = [_ask_task(endpoint, task) for task in (direct, needs_tool)]
    written = {**asdict(endpoint), "answers": [asdict(answer) for answer in answers]}
    with atomic_file(out) as partial:
        partial.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return answers


def check_answered(answers: Sequence[Asked]) -> None:
    """Raise `BackendError` where the endpoint had nothing to say; whether it is right is shown."""
    for asked in answers:
        if not asked.answer.strip():
            raise BackendError(f"it gave no answer to the question {asked.task_id}")


def _ask_task(endpoint: Endpoint, task: Task) -> Asked:
    question = user_message(task)["content"][-1]["text"]
    reply = ask(endpoint, question, task.images)
    return Asked(
        task_id=task.id,
        question=question,
        expected=task.answer[0],
        answer=reply.answer,
        correct=grade(task, reply.answer),
        tool_calls=reply.toolwise["tool_calls"],
        seconds=reply.seconds,
    )


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether the port is this process's own: another server there would answer just as well."""
    try:
        sockets = process.connections("tcp")
    except psutil.Error:
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)


def _is_ready(origin: str, model: str) -> bool:
    try:
        reply = httpx.get(f"{origin}/v1/models/{model}", timeout=2, trust_env=False)
    except httpx.HTTPError:
        return False
    return reply.status_code == 200 and reply.json().get("ready") is True


def _tail(log: Path, lines: int = 15) -> str:
    last = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"the end of {log}:", *last])
