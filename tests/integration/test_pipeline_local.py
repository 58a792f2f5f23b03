"""The local run fails early and clearly, and leaves nothing running behind."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

SMOKE = Path(__file__).parents[2] / "pipelines" / "profiles" / "smoke.yaml"


def write_profile(folder: Path, **changes: Any) -> str:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SMOKE.read_text()) | changes))
    return str(path)


def run(profile: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolwise.cli", "run", "--profile", profile, "--run-dir", folder],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_taken_port_is_told_before_anything_runs(tmp_path: Path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = run(write_profile(tmp_path, serve={"port": port}), tmp_path / "run")
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in process.stderr
    assert process.stdout == ""


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "runs").write_text("a file, where a folder should be")
    process = run(write_profile(tmp_path, serve={"port": free_port()}), tmp_path / "runs" / "demo")
    assert process.returncode == 1
    assert "cannot be written: Not a directory; give another folder" in process.stderr


def test_a_missing_sandbox_is_told_before_anything_runs(tmp_path: Path):
    profile = write_profile(tmp_path, serve={"port": free_port()})
    process = run(profile, tmp_path / "run", PATH=str(tmp_path))
    assert process.returncode == 1
    assert "apt-get install bubblewrap" in process.stderr
    assert process.stdout == ""


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path):
    from pipelines.local import _sole_run_in

    profile = write_profile(tmp_path, serve={"port": free_port()})
    with _sole_run_in(tmp_path / "run"):
        process = run(profile, tmp_path / "run")
    assert process.returncode == 1
    assert "another run is using" in process.stderr


def test_a_failed_step_is_named_with_its_reason_and_the_log(tmp_path: Path):
    profile = write_profile(
        tmp_path,
        data={"signboard": {"trajectories": 3, "rl_tasks": 3, "benchmark_items": 3}},
        base={"checkpoint": str(tmp_path / "nowhere")},
        serve={"port": free_port()},
    )
    process = run(profile, tmp_path / "run")
    assert process.returncode == 1
    reason = f"{tmp_path / 'nowhere'} does not exist"
    assert process.stderr.startswith(f"Error: base-model failed: {reason}")
    assert str(tmp_path / "run" / "pipeline.log") in process.stderr
    assert "Traceback" not in process.stderr
    lines = process.stdout.splitlines()
    assert "prepare-data: started" in lines
    assert any(line.startswith("base-model: failed after ") for line in lines)
    assert not any(line.startswith("train-sft") for line in lines)
    log = (tmp_path / "run" / "pipeline.log").read_text()
    assert "toolwise.errors.InputError" in log


def test_a_profile_that_accepts_no_isolation_needs_no_sandbox(tmp_path: Path):
    smoke = yaml.safe_load(SMOKE.read_text())
    sections = ("curate_sft", "curate_rl", "hdpo", "evaluate", "serve")
    lowered = {name: smoke[name] | {"isolation": "none"} for name in sections}
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        lowered["serve"]["port"] = holder.getsockname()[1]  # checked after the sandbox
        process = run(write_profile(tmp_path, **lowered), tmp_path / "run", PATH=str(tmp_path))
    assert "Address already in use" in process.stderr
