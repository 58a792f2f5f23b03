"""The architecture: which part may import which, from the bottom to the top.

A part is a module or package of `toolwise`, `components` or `pipelines`. It may import parts of the
layers below its own, and nothing beside it or above it; imports inside functions count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

LAYERS: list[tuple[str, set[str]]] = [
    (
        "What everybody uses: errors, events, progress, JSON, web pages, child processes, pods",
        {"errors", "events", "json_encoding", "progress", "pages", "child_process", "kubernetes"},
    ),
    (
        "Retries, intervals, the terminal",
        {"retry", "statistics", "console"},
    ),
    (
        "What is outside: S3, the Hub and the disk; a model that judges",
        {"storage", "judge"},
    ),
    (
        "Tasks and trajectories, the chat protocol, published formats; Markdown",
        {"data", "markdown"},
    ),
    (
        "What a model may call: the sandboxed python, searches",
        {"tools"},
    ),
    (
        "The loop of turns and calls that every rollout goes through, and its engines",
        {"agent"},
    ),
    (
        "What makes data: the built-in environment and tiny model, and the filters",
        {"synthetic", "curation"},
    ),
    (
        "What makes checkpoints, and what measures them",
        {"training", "evaluation"},
    ),
    (
        "Published data and benchmarks in our format; metrics, samples and traces in MLflow",
        {"preparation", "tracking"},
    ),
    (
        "What becomes of a measured checkpoint: the gate and the registry, the endpoint",
        {"promotion", "serving"},
    ),
    (
        "A run in full: its settings, and what it found",
        {"profile", "report"},
    ),
    (
        "Steps of the pipeline as functions",
        {"steps"},
    ),
    (
        "Steps as KFP components",
        {"components"},
    ),
    (
        "The pipelines of components",
        {"pipelines"},
    ),
    (
        "The command line",
        {"cli"},
    ),
]

TYPES_ONLY = {
    ("training", "profile"): "the estimate of a profile is a function of it, and makes none itself",
}
"""Imports from above that are there for type checkers alone, and why that is right."""

HEIGHT = {part: height for height, (_, parts) in enumerate(LAYERS) for part in parts}


class Import(NamedTuple):
    """A part that a file imports, and whether only a type checker sees it."""

    part: str
    line: int
    types_only: bool


def imports(source: str, package: str) -> Iterator[Import]:
    """The parts that a module of `package` imports, anywhere in its code."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) + 1 - node.level]
            start = [*(around if node.level else []), *([node.module] if node.module else [])]
            names = [".".join([*start, alias.name]) for alias in node.names]
        else:
            continue
        for part in {part for name in names if (part := part_of(name))}:
            yield Import(part, node.lineno, id(node) in for_types)


def part_of(module: str) -> str | None:
    """The part a dotted name belongs to; None for what is not ours, and for `toolwise` itself."""
    top, *rest = module.split(".")
    if top in ("components", "pipelines"):
        return top
    return rest[0] if top == "toolwise" and rest and not rest[0].startswith("__") else None


def files() -> Iterator[tuple[str, Path]]:
    """Every file with its part."""
    for top in ("toolwise", "components", "pipelines"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if part := part_of(".".join(file.relative_to(ROOT).with_suffix("").parts)):
                yield part, file


def test_every_part_has_one_place_among_the_layers() -> None:
    placed = [part for _, parts in LAYERS for part in parts]
    assert len(placed) == len(set(placed))
    assert set(placed) == {part for part, _ in files()}


def test_a_part_imports_only_from_layers_below_it() -> None:
    wrong: list[str] = []
    exempt: set[tuple[str, str]] = set()
    for part, file in files():
        package = ".".join(file.relative_to(ROOT).parent.parts)
        for found in imports(file.read_text(encoding="utf-8"), package):
            if found.part == part or HEIGHT[found.part] < HEIGHT[part]:
                continue
            if found.types_only and (part, found.part) in TYPES_ONLY:
                exempt.add((part, found.part))
            else:
                wrong.append(f"{file.relative_to(ROOT)}:{found.line}: {part} → {found.part}")
    assert wrong == []
    assert exempt == set(TYPES_ONLY), "an exemption that nothing needs any more"


@pytest.mark.parametrize(
    ("source", "part", "types_only"),
    [
        ("import toolwise.data.parquet", "data", False),
        ("from toolwise import tracking", "tracking", False),
        ("from toolwise.agent import Engine", "agent", False),
        ("def late():\n    from toolwise.steps.node import run", "steps", False),
        ("class A:\n    def late(self):\n        import pipelines.metis", "pipelines", False),
        ("if TYPE_CHECKING:\n    from toolwise.profile import Profile", "profile", True),
        ("from . import wire", "tools", False),
        ("from ....agent import Engine", "agent", False),
        ("if not here:\n    from toolwise.profile import Profile", "profile", False),
    ],
)
def test_an_import_is_found_wherever_it_stands(source: str, part: str, types_only: bool) -> None:
    code = f"import json\nfrom toolwise import __version__\n{source}\n"
    found = list(imports(code, "toolwise.tools.sandbox.inside"))
    assert [(one.part, one.types_only) for one in found] == [(part, types_only)]
