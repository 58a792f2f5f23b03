"""The container file: what holds for every image, without building one."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest
from missing_packages import run_without
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
IMAGES = ("trainer", "rollout", "operator", "agent", "sandbox")
SERVERS = {"rollout": "8000", "agent": "8080", "sandbox": "8080"}
LABELS = ("title", "description", "source", "licenses", "version", "revision")


@dataclass
class Stage:
    """A stage: what it starts from, and its instructions as (word, rest)."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == word]


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    """The file's stages by name, the defaults of its arguments put in where stages start."""
    lines = (ROOT / "components" / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    defaults: dict[str, str] = {}
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # pyright: ignore
            base = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], base)
            stage = found[name] = Stage(base)
        elif stage is None:
            assert word == "ARG"
            defaults.update([rest.split("=", 1)])
        else:
            stage.instructions.append((word, rest))
    return found


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and all it is built on, itself first."""
    found = [stages[name]]
    while found[-1].base in stages:
        found.append(stages[found[-1].base])
    return found


def in_effect(stages: dict[str, Stage], name: str, word: str) -> str | None:
    """The instruction of that kind that the image is left with."""
    return next((one.all(word)[-1] for one in lineage(stages, name) if one.all(word)), None)


def test_there_is_an_image_per_target_of_make_images(stages: dict[str, Stage]):
    listed = subprocess.run(["make", "-n", "images"], cwd=ROOT, capture_output=True, text=True)
    assert f"for image in {' '.join(IMAGES)}; do" in listed.stdout
    assert set(IMAGES) <= set(stages)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_user_10001_from_a_base_of_a_named_version(
    stages: dict[str, Stage], image: str
):
    assert in_effect(stages, image, "USER") == "10001:10001"
    added = [run for stage in lineage(stages, image) for run in stage.all("RUN")]
    assert any("useradd --uid 10001 " in run for run in added)
    assert stages[image].instructions[-1][0] in ("USER", "ENTRYPOINT")
    outermost = lineage(stages, image)[-1].base
    assert re.fullmatch(r"docker\.io/\S+:v?\d+\.\d+\.\d+\S*", outermost), outermost


def test_nothing_is_of_the_latest_version(stages: dict[str, Stage]):
    assert "latest" not in (ROOT / "components" / "Dockerfile").read_text()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is_and_of_which_commit(stages: dict[str, Stage], image: str):
    given = dict(
        pair.split("=", 1) for pair in shlex.split(in_effect(stages, image, "LABEL") or "")
    )
    assert list(given) == [f"org.opencontainers.image.{name}" for name in LABELS]
    assert given["org.opencontainers.image.version"] == "${VERSION}"
    assert given["org.opencontainers.image.revision"] == "${REVISION}"
    licence = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert given["org.opencontainers.image.licenses"] == licence
    assert set(stages[image].all("ARG")) == {"VERSION=unknown", "REVISION=unknown"}


@pytest.mark.parametrize("image", IMAGES)
def test_a_server_says_whether_it_is_well_and_no_other_does(stages: dict[str, Stage], image: str):
    check = in_effect(stages, image, "HEALTHCHECK")
    if image not in SERVERS:
        assert check is None
    else:
        assert f"http://127.0.0.1:{SERVERS[image]}/" in str(check)
        assert stages[image].all("EXPOSE") == [SERVERS[image]]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_left_without_what_it_was_built_with(stages: dict[str, Stage], image: str):
    runs = " ".join(run for stage in lineage(stages, image) for run in stage.all("RUN"))
    assert not re.search(r"\bpip\b|gcc|g\+\+|\bmake\b|build-essential|-dev\b|git\b|curl", runs)


def test_the_trainer_brings_what_triton_would_compile(stages: dict[str, Stage]):
    cache = (ROOT / "toolwise/training/triton_cache.py").read_text()
    [folder] = re.findall(r'^PREBUILT = Path\("(\S+)"\)$', cache, re.M)
    compiling = " ".join(stages["trainer-triton"].all("RUN"))
    assert f"TRITON_CACHE_DIR={folder} " in compiling
    assert f"--from=trainer-triton {folder} {folder}" in stages["trainer"].all("COPY")
    found = "toolwise.training.triton_cache:PrebuiltCache"
    assert stages["trainer"].all("ENV") == [
        f"TRITON_CACHE_MANAGER={found}",
        "TOOLWISE_GIT_COMMIT=${REVISION}",
    ]
    assert "class PrebuiltCache(FileCacheManager)" in cache


def test_every_package_is_installed_at_the_version_of_the_constraints(stages: dict[str, Stage]):
    installing = [
        name for name in stages if any("pip install" in run for run in stages[name].all("RUN"))
    ]
    assert installing == [
        "code",
        *(f"{image}-packages" for image in ("trainer", "operator", "agent", "sandbox")),
    ]
    for name in installing:
        kept = in_effect(stages, name, "ENV") or ""
        file = "constraints-trainer.txt" if name == "trainer-packages" else "constraints.txt"
        assert f"PIP_CONSTRAINT=/src/{file}" in kept
        assert "COPY" in {word for stage in lineage(stages, name) for word, _ in stage.instructions}
    assert stages["builder"].all("COPY") == ["constraints.txt ./"]
    assert "constraints-trainer.txt ./" in stages["trainer-packages"].all("COPY")
    assert "constraints" not in " ".join(stages["trainer-packages"].all("RUN"))


def pins(name: str) -> dict[str, str]:
    """The versions in a file of constraints."""
    lines = (ROOT / name).read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in found.items()}


def test_the_trainers_pins_are_those_of_the_others_but_for_what_vllm_holds_back():
    ours, trainer = pins("constraints.txt"), pins("constraints-trainer.txt")
    other = {name for name in ours.keys() & trainer.keys() if ours[name] != trainer[name]}
    assert other == {"fastapi", "numpy"}
    version = re.search(r"^ARG VLLM=(\S+)$", (ROOT / "components/Dockerfile").read_text(), re.M)
    assert version is not None
    assert trainer["vllm"] == version[1]


def test_the_trainers_pins_have_every_package_that_toolwise_needs_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [
        Requirement(text).name
        for text in (
            *extras["dependencies"],
            *extras["optional-dependencies"]["train"],
            *extras["optional-dependencies"]["pipeline"],
        )
    ]
    assert closure(named) <= pins("constraints-trainer.txt").keys()


def test_what_is_copied_is_there_and_reaches_the_build(stages: dict[str, Stage]):
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    for stage in stages.values():
        for copied in stage.all("COPY"):
            if "--from" in copied:
                continue
            for source in copied.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source.split("/")[0], rule[1:]) for rule in rules[1:])


def test_the_server_of_the_sandbox_needs_nothing_but_what_its_image_has(stages: dict[str, Stage]):
    command = stages["sandbox-packages"].all("RUN")[0]
    listed = re.search(r"pip install ([\w ]+?) &&", command)
    assert listed is not None
    allowed = closure(listed[1].split())
    missing = sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if not any(canonicalize_name(package) in allowed for package in packages)
        and module not in ("toolwise", "components", "pipelines")
    )
    program = """
import uvicorn
import toolwise.tools.sandbox.local
from toolwise.tools.sandbox.bubblewrap import command
from toolwise.tools.server import create_app
create_app()
command()
"""
    ran = run_without(missing, program)
    assert ran.returncode == 0, ran.stderr


def closure(names: list[str]) -> set[str]:
    """These distributions, and all that they need here."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return found
