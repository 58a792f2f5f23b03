"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ProfileOption = Annotated[
    str, typer.Option(help="Profile by name (see pipelines/profiles) or path of a YAML file.")
]
RegistryOption = Annotated[
    str | None,
    typer.Option(help="Registry that Toolwise's images are pulled from; as the profile has it."),
]
TagOption = Annotated[
    str | None, typer.Option(help="Tag of Toolwise's images there; as the profile has it.")
]
VariantsOption = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of variants of HDPO (pipelines/ablation.py): the ablation, instead of the "
        "pipeline.",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=2**31 - 1, help="Seed; the profile's own by default.")
]
HostOption = Annotated[
    str | None,
    typer.Option(
        envvar="KFP_HOST",
        help="Address of the Kubeflow Pipelines server; found in the cluster or by kubectl, "
        "if not given.",
    ),
]
RunFolderOption = Annotated[
    Path | None, typer.Option("--run-dir", help="Folder of the run; runs/<profile> by default.")
]
ModelOption = Annotated[Path, typer.Option(help="Checkpoint folder.", exists=True)]
CorpusOption = Annotated[
    Path, typer.Option(help="JSON lines that text_search searches.", exists=True)
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        help="Format of published rows, by name (docs/adding-a-source.md); recognised by default."
    ),
]
ImagesOption = Annotated[
    str | None, typer.Option(help="Folder or zip of the pictures, if not beside the rows.")
]
OptionalCorpus = Annotated[
    Path | None, typer.Option(help="JSON lines that text_search searches.", exists=True)
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(help="Run this filter and no other; may be repeated.", metavar="FILTER"),
]
OutOption = Annotated[Path, typer.Option(help="Where the result goes; must not exist yet.")]
