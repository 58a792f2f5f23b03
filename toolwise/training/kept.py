"""Checkpoints from before the end of a training that are kept: where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_STEP = "step-"


class KeptCheckpoint(NamedTuple):
    """A checkpoint, and the training step it is from."""

    step: int
    folder: Path


def kept_folder(out_dir: Path) -> Path:
    """Folder of the checkpoints that are kept beside the final one at `out_dir`."""
    return out_dir.with_name(f"{out_dir.name}-kept")


def kept_address(output: str) -> str:
    """The same for a checkpoint at an address."""
    return f"{output}-kept"


def kept_place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands in a folder of kept ones."""
    return folder / f"{_STEP}{step}"


def kept_checkpoints(folder: Path) -> list[KeptCheckpoint]:
    """The checkpoints in a folder of kept ones, earliest first; none where there is no folder."""
    return sorted(
        KeptCheckpoint(int(path.name.removeprefix(_STEP)), path)
        for path in folder.glob(f"{_STEP}*")
    )
