"""What the pages name exists: files, targets, commands; and figures are those commands print."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from docs import architecture, performance, sizing
from toolwise.cli import app
from toolwise.markdown import filled
from toolwise.profile import load_profile
from toolwise.training.launcher.shape import shape_of

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *(
        page
        for part in ("k8s", "charts", "components")
        for page in sorted(ROOT.glob(f"{part}/**/*.md"))
    ),
]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SETTING = r"^(?:\$ )?(?:\w+=\S+ )*"
MAKE = re.compile(SETTING + r"make (?:-\S+ )*([a-z][a-z-]*)")
COMMAND = re.compile(SETTING + r"(?:\.venv/bin/)?toolwise ([a-z][a-z-]*)")
MODULE = re.compile(SETTING + r"(?:\S*/)?python -m ([\w.]+)")


def lines_of_blocks(page: Path) -> list[str]:
    """Lines of fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return [line.strip() for block in FENCE.findall(text) for line in block.splitlines()[1:-1]]


def lines_of_code(page: Path) -> list[str]:
    """Lines of fenced blocks, and what stands between backticks."""
    text = page.read_text(encoding="utf-8")
    return lines_of_blocks(page) + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def named(page: Path, pattern: re.Pattern[str]) -> set[str]:
    return {found[1] for line in lines_of_code(page) if (found := pattern.match(line))}


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can lead to, by GitHub's rule."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_target_command_and_module_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    group = typer.main.get_command(app)
    commands = set(getattr(group, "commands"))  # noqa: B009 - click's type does not say
    assert named(page, MAKE) <= targets
    assert named(page, COMMAND) <= commands
    for module in named(page, MODULE):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_is_set_up_before_a_page_uses_it(page: Path) -> None:
    lines = [line.removeprefix("$ ") for line in lines_of_blocks(page)]
    using = [i for i, line in enumerate(lines) if line.startswith(".venv/bin/")]
    # These make `.venv` where there is none.
    makes = [i for i, line in enumerate(lines) if re.match(r"make (setup|demo|test)\b", line)]
    assert not using or (makes and makes[0] < using[0]), lines[using[0]]


def test_the_tools_that_the_prerequisites_run_are_named() -> None:
    page = (ROOT / "k8s/PREREQUISITES.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"`(\w+)`", page.partition("## Tools on your machine")[2].split("\n\n")[1])
    )
    # What Kubeflow's distribution runs, section by section.
    assert {"kubectl", "helm", "git", "kustomize"} <= named


def test_pages_name_what_they_are_about() -> None:
    page = ROOT / "docs/kubernetes.md"
    assert {"images", "submit-pipeline"} <= named(page, MAKE)
    assert "submit" in named(page, COMMAND)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/kubernetes.md"], ids=str)
def test_images_are_pulled_from_where_they_are_pushed(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = (
        "make images REGISTRY",
        "helm install toolwise .*values-gpu",
        "make submit-pipeline",
    )
    for command in commands:
        [line] = re.findall(rf"^{command}.*$", text, re.MULTILINE)
        assert re.search(r"(REGISTRY|image\.registry)=registry\.example\.com/toolwise\b", line), (
            line
        )
        if command.startswith("helm"):
            assert "--create-namespace" in line


def test_prerequisites_are_pinned_to_the_packages_that_talk_to_them() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    page = (ROOT / "k8s/PREREQUISITES.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w ]+?) \| v?([\d.]+)", page, re.MULTILINE))
    assert rows["Kubeflow Pipelines"] == pins["kfp"]
    assert rows["Kubeflow Trainer"] == pins["kubeflow-trainer-api"]
    assert rows["KServe"] == pins["kserve"]
    runtime = (ROOT / "k8s/base/serving-runtime.yaml").read_text(encoding="utf-8")
    assert f"kserve/huggingfaceserver:v{pins['kserve']}\n" in runtime


def test_the_picture_is_what_its_command_draws() -> None:
    assert architecture.FILE.read_text(encoding="utf-8") == architecture.drawing()


@pytest.mark.parametrize("made", [sizing, performance])
def test_tables_of_figures_are_what_their_command_writes(made: ModuleType) -> None:
    page = made.PAGE.read_text(encoding="utf-8")
    assert filled(page, made.tables()) == page


def test_the_saving_the_readme_tells_is_the_one_measured() -> None:
    page = performance.README.read_text(encoding="utf-8")
    assert filled(page, {"saved": performance.sentence()}) == page


def test_sizing_follows_from_its_assumptions() -> None:
    """By hand, for a thousand requests a minute without any call."""
    checkpoint = load_profile("qwen3-vl-8b").base.checkpoint
    assert checkpoint is not None
    shape = shape_of(checkpoint)
    figures = sizing.Measured(agent_ms=2.0, session_ms=10.0, frugal=0.0, lavish=1.0)
    served = sizing.serve(1_000, shape, figures)
    # 8.77 G parameters of 2 bytes, and 64 conversations that hold half of 1,800 tokens of 144 KiB
    # on average, over 60% of 3.35 TB/s; 300 tokens are written.
    a_token = (8.77e9 * 2 + 64 * 144 * 1024 * 900) / (0.6 * 3.35e12)
    assert served.seconds == pytest.approx(300 * a_token, rel=0.01)
    assert served.in_flight == pytest.approx(1_000 / 60 * 300 * a_token, rel=0.01)
    # 2 ms of its own and 10 ms of a picture, at 60% of a core.
    assert served.agent_cores == pytest.approx(1_000 / 60 * 0.012 / 0.6)
    assert served.sandbox_cores == 0
    # 1,500 tokens are read at two operations a parameter outside the embedding.
    a_read = 1_500 * 2 * (8.77e9 - 151_936 * 4096) / (0.35 * 989e12)
    needed = 1_000 / 60 * (a_read + 300 * a_token / 64) / 0.6
    assert served.gpus == -(-needed // 1)
    assert served.lavish_gpus > served.gpus
