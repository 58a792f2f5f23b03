"""Training steps on weights that two processes hold in halves (FSDP2, over gloo)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_rollouts import assert_same_gradients, base_model
from sharded_model import (
    cold_start_loss_and_whole_gradients,
    loss_and_whole_gradients,
    untied,
)
from training_processes import run


@pytest.mark.parametrize("checkpoint", [base_model, untied], ids=["tied head", "head of its own"])
def test_sharded_weights_give_the_loss_and_gradients_of_whole_ones(
    tmp_path: Path, checkpoint: Callable[[Path], Path]
) -> None:
    base = checkpoint(tmp_path)
    whole, halves = tmp_path / "whole.pt", tmp_path / "halves.pt"
    assert run(loss_and_whole_gradients, base, whole) == [0]
    assert run(loss_and_whole_gradients, base, halves, processes=2) == [0, 0]
    assert_same(whole, halves)


@pytest.mark.parametrize(
    ("checkpoint", "rows"),
    [
        (base_model, [0, 1, 3, 4]),
        (untied, [0, 1, 3, 4]),
        (base_model, [0, 1, 5, 6]),
    ],
    ids=["tied head", "head of its own", "no image in one process's part"],
)
def test_so_does_the_cold_start(
    tmp_path: Path, checkpoint: Callable[[Path], Path], rows: list[int]
) -> None:
    base = checkpoint(tmp_path)
    whole, halves = tmp_path / "whole.pt", tmp_path / "halves.pt"
    assert run(cold_start_loss_and_whole_gradients, base, whole, rows) == [0]
    assert run(cold_start_loss_and_whole_gradients, base, halves, rows, processes=2) == [0, 0]
    assert_same(whole, halves)


def assert_same(whole: Path, halves: Path) -> None:
    expected: Any = torch.load(whole)
    found: Any = torch.load(halves)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert_same_gradients(expected["gradients"], found["gradients"])
