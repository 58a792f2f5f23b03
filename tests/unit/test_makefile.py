"""What a newcomer types first."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_help_explains_every_target():
    text = make("help").stdout
    for target in (
        *(
            "setup",
            "demo",
            "test",
            "test-services",
            "lint",
            "bench",
            "compile",
            "submit-pipeline",
            "images",
        ),
        *("submit-pipeline", "images", "serve", "stop", "mlflow-ui", "clean"),
    ):
        assert f"  {target} " in text, target


def test_demo_and_test_set_themselves_up():
    for target in ("demo", "test"):
        commands = make("-n", "-B", target).stdout
        assert commands.index("pip install") < commands.index(
            "toolwise run" if target == "demo" else "pytest"
        )


def test_profile_and_seed_reach_the_run():
    commands = make("-n", "demo", "PROFILE=smoke", "SEED=2").stdout
    assert "toolwise run --profile smoke --seed 2" in commands
    assert "--seed" not in make("-n", "demo").stdout


def test_where_bubblewrap_is_missing_and_may_not_be_installed_the_command_is_named(tmp_path: Path):
    for tool in ("bash", "sh"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    nobody = tmp_path / "id"
    nobody.write_text("#!/bin/sh\necho 1000\n")
    nobody.chmod(0o755)
    made = subprocess.run(
        [shutil.which("make") or "make", "sandbox"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
    )
    assert made.returncode != 0
    assert "sudo apt-get install bubblewrap" in made.stderr
