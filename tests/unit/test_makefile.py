"""What a newcomer types first."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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


def test_a_registry_reaches_the_submission_where_one_is_named():
    named = make("-n", "submit-pipeline", "REGISTRY=registry.example.com/toolwise").stdout
    assert "--registry registry.example.com/toolwise" in named
    assert "--registry" not in make("-n", "submit-pipeline").stdout
    assert "--tag v9" in make("-n", "submit-pipeline", "TAG=v9").stdout
    assert "--tag" not in make("-n", "submit-pipeline").stdout


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


def images(folder: Path, working: tuple[str, ...], *arguments: str) -> tuple[int, list[str], str]:
    """Exit status, commands and complaints of `make images` where only these tools work."""
    log = folder / "commands"
    log.touch()
    for name in ("docker", "podman", "buildah"):
        tool = folder / name
        works = f'[ "$1" = version ] || echo "{name} $*" >> {log}'
        tool.write_text(f"#!/bin/sh\n{works if name in working else 'exit 1'}\n")
        tool.chmod(0o755)
    made = make("images", *arguments, PATH=f"{folder}:{os.environ['PATH']}")
    return made.returncode, log.read_text().splitlines(), made.stderr


@pytest.mark.parametrize(
    ("working", "chosen"),
    [
        (("docker", "podman", "buildah"), "docker build --target"),
        (("podman", "buildah"), "podman build --format docker --target"),
        (("buildah",), "buildah build --format docker --target"),
    ],
)
def test_images_are_built_with_the_first_tool_that_works(
    tmp_path: Path, working: tuple[str, ...], chosen: str
):
    status, commands, _ = images(tmp_path, working, "REGISTRY=registry.test/team", "TAG=1.2")
    assert status == 0
    assert [command.split(" --build-arg")[0] for command in commands] == [
        f"{chosen} {name} --tag registry.test/team/{name}:1.2"
        for name in ("trainer", "rollout", "operator", "agent", "sandbox")
    ]
    for command in commands:
        assert " --build-arg VERSION=" in command
        assert " --build-arg REVISION=" in command
        assert command.endswith(" --file components/Dockerfile .")
        assert "BASE=" not in command
        assert "--secret" not in command


def test_images_take_a_base_and_an_index_and_are_pushed_where_that_is_asked_for(tmp_path: Path):
    status, commands, _ = images(
        tmp_path,
        ("docker",),
        *("IMAGES=agent", "REGISTRY=registry.test", "TAG=2", "PUSH=1"),
        *("BASE=registry.test/python:3.11.9", "PIP_CONF=/etc/pip.conf"),
    )
    assert status == 0
    built, pushed = commands
    assert " --build-arg BASE=registry.test/python:3.11.9 " in built
    assert " --secret id=pip,src=/etc/pip.conf " in built
    assert pushed == "docker push registry.test/agent:2"


def test_without_a_tool_that_builds_images_all_three_are_named(tmp_path: Path):
    status, commands, complaint = images(tmp_path, ())
    assert status != 0
    assert commands == []
    assert "docker, podman or buildah is needed" in complaint
