"""Several processes train what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_rollouts import PROMPTS, G, assert_same_gradients, base_model, two_right
from training_processes import run, train_on_records

B = len(PROMPTS) * G
RUNS: list[dict[str, Any]] = [
    # Three prompts a step: the second's group is split between the processes.
    {"loss_type": "dapo", "rows": 12, "accumulate": 1},
    {"loss_type": "grpo", "rows": 12, "accumulate": 3, "w_tool": 1.0},
    # The last of each group is tool-free: two fall to the first process, one to the second.
    {"loss_type": "dapo", "rows": 12, "accumulate": 1, "tool_free": 1},
    # All tool-free rollouts of a prompt fall to the second process, and none to the first.
    {"loss_type": "dapo", "rows": 4, "accumulate": 1, "tool_free": 1},
    # One prompt each, so that a process may have no image: the other would wait for its gradients.
    {"loss_type": "dr_grpo", "rows": 8, "accumulate": 1, "ddp_find_unused_parameters": False},
]


def shared(processes: int) -> list[dict[str, Any]]:
    """The runs as so many processes share them."""
    found = []
    for settings in RUNS:
        rest = {k: v for k, v in settings.items() if k not in ("rows", "accumulate")}
        accumulate = settings["accumulate"]
        found.append(
            {
                **rest,
                "max_steps": 2,
                "per_device_train_batch_size": settings["rows"] // processes // accumulate,
                "gradient_accumulation_steps": accumulate,
            }
        )
    return found


def test_two_qualifying_rollouts_weigh_the_same_on_four_processes_as_on_one(
    tmp_path: Path,
) -> None:
    base = base_model(tmp_path)
    norms = []
    for processes in (1, 4):
        file = tmp_path / f"{processes}.pt"
        settings = {
            "loss_type": "grpo",
            "w_acc": 0.0,
            "w_tool": 1.0,
            "reward": two_right,
            "per_device_train_batch_size": B // processes,
        }
        codes = run(train_on_records, base, file, [settings], processes=processes)
        assert codes == [0] * processes
        ((curve, (gradients,)),) = torch.load(file, weights_only=False)
        assert curve[0]["qualifying/rollouts"] == 2 / B
        norms.append(torch.stack([g.norm() for g in gradients.values()]).norm().item())
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_two_processes_have_the_losses_metrics_and_gradients_of_one(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    files = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for processes, file in enumerate(files, start=1):
        codes = run(train_on_records, base, file, shared(processes), processes=processes)
        assert codes == [0] * processes
    alone, together = (torch.load(file, weights_only=False) for file in files)
    for settings, (curve, gradients), (other, others) in zip(RUNS, alone, together, strict=True):
        assert len(gradients) == len(others) == 2
        for ours, theirs in zip(gradients, others, strict=True):
            assert_same_gradients(ours, theirs)
        for step, entry in enumerate(curve[:2]):
            for name, value in entry.items():
                if "time" in name or "second" in name:
                    continue
                if settings["accumulate"] > 1 and name.startswith(("entropy", "clip_ratio")):
                    continue  # TRL takes the mean of its parts' means, whatever fell into them
                expected = pytest.approx(value, abs=2e-5, rel=1e-4)
                assert other[step][name] == expected, (settings, step, name)
        assert 0 < curve[0]["accuracy"] < 1
        assert curve[0]["loss/efficiency"] != curve[0]["loss/accuracy"]
