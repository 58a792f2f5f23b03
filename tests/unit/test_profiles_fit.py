"""The profiles that come with Toolwise fit on what they ask for, and the docs say with what."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from toolwise.cli import app
from toolwise.errors import InputError
from toolwise.profile import load_profile, profile_names
from toolwise.training.launcher.estimate import check, estimate_profile

SCALING = Path(__file__).parents[2] / "docs" / "scaling.md"
PUBLISHED = [name for name in profile_names() if load_profile(name).hardware]
"""Profiles for GPUs: their figures do not depend on the machine they are printed on."""


def estimated(profile: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["estimate", "--profile", profile])


@pytest.mark.parametrize("name", profile_names())
def test_it_fits(name: str) -> None:
    for estimate in estimate_profile(load_profile(name)):
        check(estimate)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_docs_hold_what_the_command_prints(name: str) -> None:
    printed = estimated(name)
    assert printed.exit_code == 0, printed.output
    lines = [line.rstrip() for line in printed.output.splitlines()]
    assert "\n".join(lines).strip() in SCALING.read_text()


def test_there_is_one_for_one_gpu_and_one_for_the_papers_eight() -> None:
    small, large = load_profile("qwen3-vl-2b"), load_profile("qwen3-vl-8b")
    assert small.hdpo.processes == 1
    assert small.hdpo.lora
    assert large.hdpo.processes == 8
    assert not large.hdpo.lora
    assert large.kubeflow
    assert large.kubeflow.exchange


def test_hardware_is_the_same_for_both_training_steps() -> None:
    profile = load_profile("qwen3-vl-8b")
    assert profile.sft.hardware == profile.hdpo.hardware == profile.hardware
    assert load_profile("demo").hdpo.hardware is None


def changed(folder: Path, section: str, **changes: object) -> str:
    content = yaml.safe_load(Path("pipelines/profiles/qwen3-vl-8b.yaml").read_text())
    content[section] = content[section] | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_profile_that_cannot_fit_is_refused_by_the_command(tmp_path: Path) -> None:
    refused = estimated(changed(tmp_path, "hdpo", accumulate=16))
    assert refused.exit_code == 1
    assert "does not fit" in refused.output


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("kubeflow", {"memory": "32Gi"}, "128Gi of main memory"),
        ("kubeflow", {"memory": "much"}, "is not an amount of memory"),
        ("hdpo", {"accumulate": 255}, "set hdpo.accumulate to 64 or 128 or 256"),
        ("hardware", {"context_tokens": 300_000}, "reads at most 262,144 tokens"),
    ],
)
def test_the_command_refuses_what_training_would_only_find_on_its_gpus(
    tmp_path: Path, section: str, changes: dict[str, object], told: str
) -> None:
    refused = estimated(changed(tmp_path, section, **changes))
    assert refused.exit_code == 1
    assert told in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("hardware", {"vllm": "server"}, "needs kubeflow.vllm_image"),
        ("hardware", {"vllm_gpus": 2}, "vllm_gpus is for vllm: server"),
        ("kubeflow", {"exchange": "/mnt/x"}, "kubeflow.exchange"),
        ("hardware", {"gpu": "tpu-v5p"}, "hardware.gpu"),
    ],
)
def test_machines_that_cannot_be_had_are_refused(
    tmp_path: Path, section: str, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        load_profile(changed(tmp_path, section, **changes))
