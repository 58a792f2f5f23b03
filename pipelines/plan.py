"""A pipeline to compile, submit and follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kfp import compiler
from kfp.dsl.graph_component import GraphComponent

from toolwise.errors import InputError
from toolwise.storage import atomic_file


class Plan(NamedTuple):
    """A pipeline, and what people call its parts.

    Args:
        name: the pipeline's.
        pipeline: it.
        steps: its steps, in the order a person thinks of them.
        labels: Kubeflow's names of the tasks that are called something else in `steps`.
    """

    name: str
    pipeline: GraphComponent
    steps: tuple[str, ...]
    labels: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write it as IR YAML; the same plan gives the same bytes.

        Raises:
            InputError: no such file can be written.
        """
        if path.suffix not in (".yaml", ".yml"):
            raise InputError(
                f"{path}: a compiled pipeline is a YAML file; name one that ends in .yaml"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as partial:
                compiler.Compiler().compile(self.pipeline, str(partial))
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
