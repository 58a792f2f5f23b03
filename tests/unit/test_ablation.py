"""The ablation pipeline runs every variant from one cold start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from pipelines.ablation import ablation, read_variants
from toolwise.errors import InputError
from toolwise.profile import load_profile

VARIANTS = {"grpo": {"variant": "grpo"}, "tool-free": {"tool_free": 2}}


def compiled(folder: Path) -> dict[str, Any]:
    path = folder / "ablation.yaml"
    compiler.Compiler().compile(ablation(load_profile("demo"), VARIANTS), str(path))
    return next(yaml.safe_load_all(path.read_text()))


def test_variants_are_items_of_one_loop_with_the_profiles_settings_changed(tmp_path: Path) -> None:
    tasks = compiled(tmp_path)["root"]["dag"]["tasks"]
    (loop,) = [task for task in tasks.values() if "parameterIterator" in task]
    items = json.loads(loop["parameterIterator"]["items"]["raw"])
    assert [item["stage"] for item in items] == ["grpo", "tool-free"]
    plain = load_profile("demo").hdpo
    settings = [json.loads(item["settings"]) for item in items]
    assert settings[0] == plain.model_copy(update={"variant": "grpo"}).model_dump(mode="json")
    assert settings[1] == plain.model_copy(update={"tool_free": 2}).model_dump(mode="json")
    assert {"train-sft", "curate-rl", "prepare-data"} <= tasks.keys()


def test_each_variant_is_trained_and_measured(tmp_path: Path) -> None:
    components = compiled(tmp_path)["components"]
    (loop,) = [c for name, c in components.items() if name.startswith("comp-for-loop")]
    assert set(loop["dag"]["tasks"]) == {"train-hdpo", "evaluate"}
    assert loop["dag"]["tasks"]["evaluate"]["dependentTasks"] == ["train-hdpo"]


def test_a_setting_that_does_not_exist_is_told_with_its_variant(tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text("bold: {w_tol: 1}\n")
    with pytest.raises(InputError, match=r"variant 'bold'[\s\S]*w_tol"):
        ablation(load_profile("demo"), read_variants(file))


def test_a_file_that_holds_no_variants_is_told(tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text("- grpo\n")
    with pytest.raises(InputError, match="is not a file of variants"):
        read_variants(file)
