"""Run the pipeline on this machine, watched: `pipelines.runner` does it in a process of its own.

The runner and the steps write to a log file; what a person sees comes from the steps' events.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from pipelines.metis import STEPS, compile_pipeline
from pipelines.runner import PIPELINE
from toolwise.console import Display, LineDisplay, LiveDisplay, RunBoard
from toolwise.errors import InputError, ToolwiseError
from toolwise.events import EVENTS_VARIABLE, EventReader
from toolwise.profile import Profile
from toolwise.steps import RUN_VARIABLE, WORK_VARIABLE, code_digest
from toolwise.storage import atomic_file

_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": 2**30,
    "MALLOC_MMAP_THRESHOLD_": 2**25,
    "MALLOC_TOP_PAD_": 2**26,
}
"""Bytes. A training step frees what the next one needs again: glibc is to keep it, for asking the
kernel for it anew takes a tenth of the step."""


class StepFailed(ToolwiseError):
    """A step of the pipeline failed; says which, why, and where the log is."""


def run_locally(profile: Profile, seed: int, run_folder: Path, console: Console) -> Path:
    """Run the pipeline of `profile`, re-using what earlier runs in `run_folder` finished.

    Args:
        profile: what to run.
        seed: seed of every step.
        run_folder: where everything of the run goes; `report.json` and `report.html` at the end.
        console: where to show progress; a live table on a terminal, otherwise lines.

    Returns:
        Path of `report.json`.

    Raises:
        InputError: the folder cannot be written, or another run is using it.
        StepFailed: a step failed.
    """
    run_folder = run_folder.absolute()
    # All of it runs here: no pods, no TrainJobs, and no service of a cluster.
    profile = profile.model_copy(update={"kubeflow": None})
    with _sole_run_in(run_folder):
        _check_sandbox(profile)
        _check_port(profile, run_folder)
        events = run_folder / "events.jsonl"
        events.unlink(missing_ok=True)
        board = RunBoard.of(STEPS)
        display = LiveDisplay(board, console) if console.is_terminal else LineDisplay(console)
        exit_status = _watch(profile, seed, run_folder, EventReader(events), board, display)
        log = run_folder / "pipeline.log"
        failed = [row for row in board.rows if row.state == "failed"]
        if failed:
            raise StepFailed(f"{failed[0].name} failed: {failed[0].note}\nThe full log is {log}")
        if exit_status != 0:
            running = [row.name for row in board.rows if row.state == "running"]
            what = f"{running[0]} was killed" if running else "the pipeline failed"
            raise StepFailed(f"{what} (exit status {exit_status})\nThe full log is {log}")
        return _collect_report(board, run_folder)


def endpoint_folder(run_folder: Path) -> Path:
    """Where the endpoint of a run keeps its process file and its log."""
    return run_folder / "steps" / "deploy"


def _check_sandbox(profile: Profile) -> None:
    """Run a line in each sandbox the steps will ask for, rather than fail minutes later.

    Raises:
        BackendError: an isolation level of the profile cannot be had here.
    """
    from toolwise.tools.sandbox import open_sandbox

    for level in sorted(set(profile.isolation.values())):
        sandbox = open_sandbox(level, workers=1)
        try:
            sandbox.open([]).call("pass")
        finally:
            sandbox.close()


def _check_port(profile: Profile, run_folder: Path) -> None:
    """The endpoint's port is free, or held by this run's own endpoint, which gives it back."""
    from toolwise.serving.deploy import is_deployed

    if is_deployed(endpoint_folder(run_folder)):
        return
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((profile.serve.host, profile.serve.port))
        except OSError as error:
            raise InputError(
                f"the endpoint cannot listen on {profile.serve.host} port {profile.serve.port}: "
                f"{error.strerror}; stop what uses it (another run's endpoint: make stop "
                "PROFILE=…), or set serve.port in the profile"
            ) from None


def _watch(
    profile: Profile,
    seed: int,
    run_folder: Path,
    events: EventReader,
    board: RunBoard,
    display: Display,
) -> int:
    """Run the pipeline in its own process group and show its events; returns its exit status."""
    compile_pipeline(profile, run_folder / PIPELINE)
    with (run_folder / "pipeline.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.runner", str(seed), str(run_folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | _environment(profile, seed, run_folder),
        )
    try:
        with display:
            while process.poll() is None:
                _show(events, board, display)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
            _show(events, board, display)
            board.close()
    except KeyboardInterrupt:
        raise ToolwiseError("stopped; the same command goes on from here") from None
    finally:
        # Also when this process is interrupted: no step may outlive its run.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    return process.returncode


def _show(events: EventReader, board: RunBoard, display: Display) -> None:
    for event in events.new():
        display.changed(event, board.take(event))


def _environment(profile: Profile, seed: int, run_folder: Path) -> dict[str, str]:
    identity = f"{code_digest()}{profile.model_dump_json()}".encode()
    return {
        EVENTS_VARIABLE: str(run_folder / "events.jsonl"),
        WORK_VARIABLE: str(run_folder / "steps"),
        # The same for a run that is taken up again, so that MLflow shows one run and not two.
        RUN_VARIABLE: f"{profile.name}-{seed}-{hashlib.sha256(identity).hexdigest()[:8]}",
        "MLFLOW_EXPERIMENT_NAME": profile.name,
        "MLFLOW_TRACKING_URI": tracking_uri(run_folder),
        "PYTHONUNBUFFERED": "1",
        # A step's threads wait for each other at every small matrix: on two cores, a second one
        # gains little and, as soon as anything else runs, loses a great deal.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        **{name: os.environ.get(name, str(size)) for name, size in _ALLOCATOR.items()},
    }


def tracking_uri(run_folder: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or one SQLite file for all runs beside `run_folder`."""
    default = f"sqlite:///{run_folder.absolute().parent / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def print_outcome(report_json: Path, console: Console) -> None:
    """Print the figures, the decision, and where everything is."""
    from toolwise.report import print_report

    console.print()
    print_report(report_json, console)
    console.print()
    run_folder = report_json.parent
    endpoint = json.loads(report_json.read_text())["endpoint"]
    places = {
        "Report": str(run_folder / "report.html"),
        "Figures": str(report_json),
        "MLflow": f"make mlflow-ui   ({tracking_uri(run_folder)})",
        "Endpoint": f"{endpoint['url']}   (make stop ends it)" if endpoint else "not deployed",
        "Log": str(run_folder / "pipeline.log"),
    }
    for name, place in places.items():
        console.print(f"{name + ':':10}{place}", soft_wrap=True, markup=False)


def _collect_report(board: RunBoard, run_folder: Path) -> Path:
    """Copy the report out of its step's folder to where a person looks for it."""
    folder = next(Path(row.folder) for row in board.rows if row.name == "report")
    for name in ("report.json", "report.html"):
        with atomic_file(run_folder / name) as partial:
            shutil.copyfile(folder / name, partial)
    return run_folder / "report.json"


@contextmanager
def _sole_run_in(run_folder: Path) -> Iterator[None]:
    """Make the folder, and keep a second run out of it while this one lasts."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        lock = (run_folder / "lock").open("a")
    except OSError as error:
        raise InputError(
            f"{run_folder} cannot be written: {error.strerror}; "
            "give another folder with --run-dir, or make it writable"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is using {run_folder}; wait for it to end, "
                "or give another folder with --run-dir"
            ) from None
        yield
