"""The ablation pipeline runs every variant from one cold start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.ablation import plan, read_variants
from pipelines.submission.following import step_name
from toolwise.errors import InputError
from toolwise.profile import load_profile

VARIANTS = {"grpo": {"variant": "grpo"}, "tool-free": {"tool_free": 2}}


def compiled(folder: Path, profile: str) -> dict[str, Any]:
    path = folder / "ablation.yaml"
    plan(load_profile(profile), VARIANTS).write(path)
    return next(yaml.safe_load_all(path.read_text()))


def steps(spec: dict[str, Any]) -> dict[str, Any]:
    """The tasks that the exit handler is around, by name."""
    return spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def test_each_variant_is_trained_with_its_settings_and_measured(tmp_path: Path) -> None:
    tasks = steps(compiled(tmp_path, "demo"))
    plain = load_profile("demo").hdpo
    variants = {"train-hdpo": {"variant": "grpo"}, "train-hdpo-2": {"tool_free": 2}}
    for (name, changes), number in zip(variants.items(), ("", "-2"), strict=True):
        given = tasks[name]["inputs"]["parameters"]["settings"]["runtimeValue"]["constant"]
        assert json.loads(given) == plain.model_copy(update=changes).model_dump(mode="json")
        measured = tasks[f"evaluate{number}"]
        model = measured["inputs"]["artifacts"]["model"]["taskOutputArtifact"]["producerTask"]
        assert model == name
    assert len([name for name in tasks if name.startswith("train-sft")]) == 1
    stages = [
        tasks[name]["inputs"]["parameters"]["stage"]["runtimeValue"]["constant"]
        for name in ("evaluate", "evaluate-2")
    ]
    assert stages == ["grpo", "tool-free"]


def test_the_benchmarks_of_each_variant_are_answered_side_by_side(tmp_path: Path) -> None:
    tasks = steps(compiled(tmp_path, "qwen3-vl-8b"))
    assert len([task for task in tasks.values() if "parameterIterator" in task]) == len(VARIANTS)
    assert {"gather", "gather-2"} <= tasks.keys()


def test_the_ablations_mlflow_run_is_closed(tmp_path: Path) -> None:
    root = compiled(tmp_path, "demo")["root"]["dag"]["tasks"]
    assert root["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_people_know_each_variants_steps_by_its_name() -> None:
    made = plan(load_profile("qwen3-vl-8b"), VARIANTS)
    assert made.steps[-6:] == (
        *("train-hdpo grpo", "train-hdpo tool-free", "answer grpo", "answer tool-free"),
        *("evaluate grpo", "evaluate tool-free"),
    )
    assert step_name("train-hdpo-2(0)", made.labels) == "train-hdpo tool-free"
    assert step_name("gather", made.labels) == "evaluate grpo"
    assert set(made.labels.values()) <= set(made.steps)


def test_a_setting_that_does_not_exist_is_told_with_its_variant(tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text("bold: {w_tol: 1}\n")
    with pytest.raises(InputError, match=r"variant 'bold'[\s\S]*w_tol"):
        plan(load_profile("demo"), read_variants(file))


def test_a_file_that_holds_no_variants_is_told(tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text("- grpo\n")
    with pytest.raises(InputError, match="is not a file of variants"):
        read_variants(file)
