"""A training that is killed at any moment and run again goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from recorded_rollouts import base_model
from safetensors.torch import load_file
from toy_training import TASKS, cold_start
from training_processes import run, train_on_agent, train_on_trl, train_the_step

from toolwise.data.parquet import write_tasks
from toolwise.training.resuming import last_checkpoint
from toolwise.training.settings import HdpoSettings

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q|v)_proj")
KILLED = [-signal.SIGKILL]


def lasting(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curve without what is different every time."""
    return [
        {name: value for name, value in entry.items() if "time" not in name and "sec" not in name}
        for entry in curve
        if "train_runtime" not in entry
    ]


class TestOnTrlsOwnGeneration:
    """Two epochs of two steps; sampled with the global random numbers."""

    RUNS = (
        # Every batch of rollouts serves four updates, in two halves: 1 … 4 and 5 … 6 share one.
        {
            "max_steps": 6,
            "num_iterations": 2,
            "steps_per_generation": 2,
            "per_device_train_batch_size": 4,
        },
        # A reference that follows the policy, in an epoch of its own after every second step.
        {
            "max_steps": 5,
            "beta": 0.5,
            "sync_ref_model": True,
            "ref_model_sync_steps": 2,
            "ref_model_mixup_alpha": 0.5,
        },
        # Losses and metrics of two steps are logged together.
        {"max_steps": 4, "logging_steps": 2, "gradient_accumulation_steps": 2},
    )

    @pytest.mark.parametrize(
        ("changes", "deaths"),
        [
            # Amid a batch of rollouts, with the next checkpoint half written, and at an update.
            (RUNS[0], [("_save_rng_state", 2), ("training_step", 3), ("_save_rng_state", 4)]),
            # After the rollouts of the first step of the second and of the third epoch.
            (RUNS[1], [("_generate", 2), ("_generate", 4)]),
            (RUNS[2], [("training_step", 1), ("training_step", 3)]),
        ],
        ids=["rollouts used several times", "a reference that moves", "logged every other step"],
    )
    def test_the_metrics_after_a_kill_are_those_of_a_run_left_alone(
        self, tmp_path: Path, changes: dict[str, Any], deaths: list[tuple[str, int]]
    ) -> None:
        base = base_model(tmp_path)
        alone, killed = tmp_path / "alone", tmp_path / "killed"
        assert run(train_on_trl, base, alone, changes, None) == [0]
        for death in deaths:
            assert run(train_on_trl, base, killed, changes, death) == KILLED
            assert not (killed / "curve.pt").exists()
        assert run(train_on_trl, base, killed, changes, None) == [0]
        expected, found = (lasting(torch.load(f / "curve.pt")) for f in (alone, killed))
        assert len(expected) >= 2
        assert found == expected
        assert len({json.dumps(entry["loss"]) for entry in expected}) == len(expected)


def test_a_run_killed_after_its_last_checkpoint_takes_no_step_more(tmp_path: Path) -> None:
    """Which is amid an epoch: epochs have two steps."""
    base, killed = base_model(tmp_path), tmp_path / "killed"
    changes = {"max_steps": 3}
    assert run(train_on_trl, base, killed, changes, ("_save_checkpoint", 3)) == KILLED
    weights = (killed / "checkpoint-3" / "model.safetensors").read_bytes()
    assert run(train_on_trl, base, killed, changes, None) == [0]
    assert [entry["step"] for entry in lasting(torch.load(killed / "curve.pt"))] == [1, 2, 3]
    assert not (killed / "checkpoint-4").exists()
    assert (killed / "checkpoint-3" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("changes", "adapters"),
    [
        ({"num_iterations": 2}, None),
        ({}, LORA),
        ({"num_iterations": 2, "beta": 0.1}, LORA),
        ({"num_iterations": 2, "use_adaptive_entropy": True}, None),
    ],
    ids=["rollouts used twice", "adapters", "adapters, a KL term", "adaptive entropy"],
)
def test_on_the_agent_loop_a_killed_run_ends_as_one_left_alone(
    tmp_path: Path, changes: dict[str, Any], adapters: LoraConfig | None
) -> None:
    base = base_model(tmp_path)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    changes = {"max_steps": 4, "w_tool": 0.5, **changes}
    assert run(train_on_agent, base, alone, changes, adapters, None) == [0]
    # Before the second use of a batch of rollouts, and with a checkpoint half written.
    for death in (("training_step", 1), ("_save_rng_state", 3)):
        assert run(train_on_agent, base, killed, changes, adapters, death) == KILLED
    assert run(train_on_agent, base, killed, changes, adapters, None) == [0]
    (expected, weights), (found, others) = (torch.load(f / "trained.pt") for f in (alone, killed))
    assert lasting(found) == lasting(expected)
    assert [entry["grad_norm"] > 0 for entry in lasting(expected)] == [True] * 4
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_two_processes_killed_at_once_go_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    changes = {"max_steps": 3, "per_device_train_batch_size": 4}
    assert run(train_on_trl, base, alone, changes, None, processes=2) == [0, 0]
    # With the second checkpoint half written: both find it so, and either may clear it away.
    death = ("_save_rng_state", 2)
    assert run(train_on_trl, base, killed, changes, death, processes=2) == 2 * KILLED
    assert run(train_on_trl, base, killed, changes, None, processes=2) == [0, 0]
    expected, found = (lasting(torch.load(f / "curve.pt")) for f in (alone, killed))
    assert len(expected) == 3
    assert found == expected


def test_a_half_written_checkpoint_that_another_process_clears_away_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "weights").write_text("half")
    unlink = os.unlink

    def late(path: Any, **options: Any) -> None:
        unlink(path, **options)
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "unlink", late)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_the_step_killed_twice_ends_in_the_same_model(tmp_path: Path) -> None:
    """With the agent loop, the sandbox and three epochs."""
    checkpoint, prompts = cold_start(tmp_path, steps=30), tmp_path / "tasks.parquet"
    write_tasks(prompts, TASKS[:3])
    settings = HdpoSettings(
        steps=4,
        prompts_per_step=3,
        num_generations=4,
        learning_rate=1e-3,
        checkpoint_every=1,
        max_tokens=40,
        max_turns=2,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(train_the_step, checkpoint, prompts, whole, settings, None) == [0]
    for step in (2, 3):
        assert run(train_the_step, checkpoint, prompts, killed, settings, step) == KILLED
        assert not killed.exists()
    assert run(train_the_step, checkpoint, prompts, killed, settings, None) == [0]
    curves = [
        [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    ]
    assert lasting(curves[1]) == lasting(curves[0])
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
