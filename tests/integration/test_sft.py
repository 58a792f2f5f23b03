"""The cold start: learns what the assistant wrote, resumes, and leaves all or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from toy_training import TASKS, cold_start, trajectories, write_base

from toolwise.agent import Sampling, run_agent
from toolwise.agent.rendering import RenderedConversation
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data.parquet import write_trajectories
from toolwise.errors import InputError
from toolwise.tools import open_tools
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.training.kept import kept_checkpoints, kept_folder
from toolwise.training.launcher import launch
from toolwise.training.settings import LoraSettings, SftSettings
from toolwise.training.sft import _order, train_sft

SETTINGS = SftSettings(
    steps=6, batch_size=4, learning_rate=1e-3, warmup_steps=2, checkpoint_every=2
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_start(tmp_path_factory.mktemp("sft"))


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    data = tmp_path / "trajectories.parquet"
    write_trajectories(data, trajectories() * 2)
    return write_base(tmp_path / "base"), data


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


async def test_the_agent_does_with_tools_what_it_was_shown(checkpoint: Path) -> None:
    engine = TransformersEngine.load(checkpoint)
    tools = open_tools(None)
    try:
        rollouts = await run_agent(
            engine, TASKS[:3] * 8, tools, sampling=Sampling(1.0, max_tokens=90, seed=1)
        )
    finally:
        for tool in tools:
            await tool.aclose()
    assert {rollout.tool_calls for rollout in rollouts} == {0, 1}
    right = [rollout.answer in rollout.task.answer for rollout in rollouts]
    assert sum(right) > 16
    shown = [r for r in rollouts if r.task.images and r.tool_calls and r.calls[0].result.images]
    assert shown


async def test_trajectories_marked_tools_none_are_trained_without_the_tool_block(
    checkpoint: Path,
) -> None:
    engine = TransformersEngine.load(checkpoint)
    rollouts = await run_agent(engine, [TASKS[3]], (), sampling=Sampling(max_tokens=90))
    assert [r.answer for r in rollouts] == ["7"]


def test_the_curve_stands_beside_the_model(checkpoint: Path) -> None:
    lines = [json.loads(s) for s in (checkpoint / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[-1]["loss"] < lines[0]["loss"] / 5


def test_a_killed_run_resumes_to_the_same_model(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    base, data = inputs
    steps: list[int] = []

    def stop_at_five(done: int, total: int, note: str) -> None:
        steps.append(done)
        if len(steps) == 5:
            raise KeyboardInterrupt

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_sft(base, data, whole, SETTINGS, seed=3, tools=[PYTHON_SCHEMA])
    with pytest.raises(KeyboardInterrupt):
        train_sft(
            base, data, resumed, SETTINGS, seed=3, tools=[PYTHON_SCHEMA], progress=stop_at_five
        )
    assert not resumed.exists()
    train_sft(base, data, resumed, SETTINGS, seed=3, tools=[PYTHON_SCHEMA], progress=stop_at_five)
    assert steps == [1, 2, 3, 4, 5, 5, 6]  # the second call went on from the checkpoint at 4
    assert equal(whole, resumed)
    assert (whole / "train_log.jsonl").read_text().count("\n") == SETTINGS.steps
    left = {path.name for path in tmp_path.iterdir()} - {"base", "trajectories.parquet"}
    assert left == {"whole", "resumed"}


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2)])
def test_a_batch_in_parts_is_trained_on_as_a_whole_one_is(
    inputs: tuple[Path, Path], tmp_path: Path, processes: int, accumulate: int
) -> None:
    """Parts hold different numbers of tokens, and every token of the batch counts the same."""
    base, data = inputs
    made = []
    for name, changes in (("whole", {}), ("parts", {"accumulate": accumulate})):
        launch(
            "toolwise.training.sft:train_sft",
            processes if changes else 1,
            model_dir=base,
            trajectories=data,
            out_dir=tmp_path / name,
            settings=SETTINGS.model_copy(update={"steps": 2, **changes}),
            tools=[PYTHON_SCHEMA],
        )
        lines = (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        made.append([[json.loads(line)[key] for key in ("loss", "grad_norm")] for line in lines])
    whole, parts = made
    assert len(whole) == 2
    assert parts == [pytest.approx(step, rel=1e-4) for step in whole]


def test_the_newest_checkpoints_before_the_end_are_kept_also_of_a_run_that_was_killed(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, data = inputs
    settings = SETTINGS.model_copy(update={"steps": 8, "keep_checkpoints": 3})

    def stop(done: int, total: int, note: str) -> None:
        if done == 5 and not resumed.exists() and not stopped:
            stopped.append(done)
            raise KeyboardInterrupt

    stopped: list[int] = []
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_sft(base, data, whole, settings, tools=[PYTHON_SCHEMA])
    with pytest.raises(KeyboardInterrupt):
        train_sft(base, data, resumed, settings, tools=[PYTHON_SCHEMA], progress=stop)
    # What is kept may be lost by a kill just after the checkpoint at 4.
    (kept,) = tmp_path.glob(".resumed.training-*/kept/step-4")
    shutil.rmtree(kept)
    train_sft(base, data, resumed, settings, tools=[PYTHON_SCHEMA], progress=stop)
    of_whole, of_resumed = (kept_checkpoints(kept_folder(out)) for out in (whole, resumed))
    assert [one.step for one in of_whole] == [one.step for one in of_resumed] == [4, 6]
    for one, other in zip(of_whole, of_resumed, strict=True):
        assert equal(one.folder, other.folder)
        assert not equal(one.folder, whole)
    TransformersEngine.load(of_whole[0].folder)
    assert not (of_whole[0].folder / "training_args.bin").exists()


def test_checkpoints_an_earlier_training_kept_are_gone_where_none_are(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, data = inputs
    out = tmp_path / "out"
    for keep in (2, 1):
        settings = SETTINGS.model_copy(update={"steps": 3, "keep_checkpoints": keep})
        train_sft(base, data, out, settings, tools=[PYTHON_SCHEMA])
        assert len(kept_checkpoints(kept_folder(out))) == keep - 1
    assert not kept_folder(out).exists()


def test_adapters_are_merged_at_the_end_only_so_no_other_checkpoint_can_be_kept() -> None:
    with pytest.raises(ValidationError, match="keep_checkpoints is 1 with lora"):
        SftSettings(lora=LoraSettings(), keep_checkpoints=2)


def test_another_seed_does_not_resume_the_first(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    base, data = inputs

    def stop(done: int, total: int, note: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    out, alone = tmp_path / "out", tmp_path / "alone"
    with pytest.raises(KeyboardInterrupt):
        train_sft(base, data, out, SETTINGS, seed=3, tools=[PYTHON_SCHEMA], progress=stop)
    train_sft(base, data, out, SETTINGS, seed=4, tools=[PYTHON_SCHEMA])
    train_sft(base, data, alone, SETTINGS, seed=4, tools=[PYTHON_SCHEMA])
    assert equal(out, alone)


def test_a_checkpoint_cut_short_is_not_resumed(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    base, data = inputs

    def stop(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        train_sft(base, data, out, SETTINGS, tools=[PYTHON_SCHEMA], progress=stop)
    (state,) = tmp_path.glob(".out.training-*/checkpoint-4/trainer_state.json")
    state.write_text(state.read_text()[:40])
    train_sft(base, data, out, SETTINGS, tools=[PYTHON_SCHEMA])
    train_sft(base, data, whole, SETTINGS, tools=[PYTHON_SCHEMA])
    assert equal(out, whole)


def test_no_trajectories_is_said(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    write_trajectories(empty, [])
    with pytest.raises(InputError, match="no trajectory"):
        train_sft(inputs[0], empty, tmp_path / "out", SETTINGS)


def test_a_trajectory_without_a_last_word_is_named(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = trajectories()[0]
    data = tmp_path / "broken.parquet"
    write_trajectories(data, [type(broken)(broken.task, broken.messages[:-1])])
    with pytest.raises(InputError, match=r"trajectory red: .*assistant"):
        train_sft(inputs[0], data, tmp_path / "out", SETTINGS)


def test_a_frozen_vision_encoder_stays_as_it_was(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    base, data = inputs
    train_sft(base, data, tmp_path / "out", SETTINGS.model_copy(update={"freeze_vision": True}))
    before, after = weights(base), weights(tmp_path / "out")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(".visual." in name for name in moved)


def test_a_batch_goes_from_short_to_long_and_every_row_comes_once_an_epoch() -> None:
    lengths = [9, 2, 7, 4, 3, 8]
    rendered = [RenderedConversation([0] * length, [0] * length, ()) for length in lengths]
    settings = SftSettings(steps=4, batch_size=3)
    rows = _order(rendered, settings, seed=0)
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))
    batches = [rows[at : at + 3] for at in range(0, 12, 3)]
    assert all(
        [lengths[row] for row in batch] == sorted(lengths[row] for row in batch)
        for batch in batches
    )
    assert rows == _order(rendered, settings, seed=0) != _order(rendered, settings, seed=1)
