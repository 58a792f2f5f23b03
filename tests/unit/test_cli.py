"""The command line: what a person types, and what they read when it is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from toolwise.cli import app
from toolwise.steps import STEPS

IMPORTS_NOTHING_HEAVY = """
import sys
from toolwise.cli import app
heavy = {"torch", "transformers", "mlflow", "kfp", "kserve", "openai", "datasets"}
print(sorted(heavy & set(sys.modules)))
"""


def toolwise(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


def test_help_lists_every_command_without_loading_what_they_need():
    text = toolwise("--help").output
    for command in ("run", "compile", "submit", "serve", "ask", "report", "stop"):
        assert f" {command} " in text
    for step in STEPS:
        assert f" {step} " in text
    loaded = subprocess.run(
        [sys.executable, "-c", IMPORTS_NOTHING_HEAVY], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_an_error_a_person_can_mend_is_one_line_and_no_traceback():
    process = subprocess.run(
        [sys.executable, "-m", "toolwise.cli", "compile", "--profile", "nope"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("Error: there is no profile 'nope'; there are: demo")
    assert "Traceback" not in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("rollback", "--reason", b"caf\xe9 burnt"), ("ask", b"caf\xe9 burnt")]
)
def test_text_that_is_not_utf8_is_refused_as_such(arguments: tuple[str | bytes, ...]):
    process = subprocess.run(
        [sys.executable, "-m", "toolwise.cli", *arguments], capture_output=True, text=True
    )
    assert process.returncode == 2
    assert r"'caf\udce9 burnt' is not valid UTF-8" in process.stderr
    assert "Traceback" not in process.stderr


def test_compile_writes_where_it_says(tmp_path: Path):
    target = tmp_path / "deep" / "metis.yaml"
    result = toolwise("compile", "--profile", "smoke", "--out", str(target))
    assert result.exit_code == 0, result.output
    assert "name: metis-smoke" in target.read_text()
    assert f"Wrote {target}" in result.output


def test_compile_names_images_at_the_registry_that_is_given(tmp_path: Path):
    target = tmp_path / "pipeline.yaml"
    options = ("--out", str(target), "--registry", "registry.example.com/toolwise")
    assert toolwise("compile", "--profile", "qwen3-vl-2b", *options).exit_code == 0
    text = target.read_text()
    assert "image: registry.example.com/toolwise/trainer:0.1.0\n" in text
    assert "ghcr.io/toolwise" not in text
    assert toolwise("compile", "--profile", "qwen3-vl-2b", *options, "--tag", "v9").exit_code == 0
    assert target.read_text() == text.replace("0.1.0", "v9")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder.yaml", "cannot be written: Is a directory"),
        ("file/deep.yaml", "cannot be written: File exists"),
        ("pipeline.json", "name one that ends in .yaml"),
    ],
)
def test_compile_says_where_it_cannot_write(tmp_path: Path, name: str, told: str):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "file").touch()
    result = toolwise("compile", "--profile", "smoke", "--out", str(tmp_path / name))
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert told in result.output


@pytest.mark.parametrize("seed", ["-1", "2147483648", "one"])
def test_a_seed_out_of_range_is_refused(seed: str):
    result = toolwise("run", "--seed", seed)
    assert result.exit_code == 2
    assert "--seed" in result.output


def test_a_step_says_which_input_is_missing(tmp_path: Path):
    result = toolwise("train-sft", "--model", str(tmp_path / "none"), "--curated", str(tmp_path))
    assert result.exit_code == 2
    assert "'--model'" in result.output
    assert "does not exist" in result.output


def test_a_step_does_not_write_over_what_is_there(tmp_path: Path):
    (tmp_path / "base").mkdir()
    result = toolwise("base-model", "--out", str(tmp_path / "base"))
    assert result.exit_code == 1


def test_report_says_when_there_is_none(tmp_path: Path):
    result = toolwise("report", str(tmp_path / "report.json"))
    assert result.exit_code == 1


def test_ask_says_when_nothing_serves():
    process = subprocess.run(
        [sys.executable, "-m", "toolwise.cli", "ask", "2+2?", "--url", "http://127.0.0.1:9/v1"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("Error: http://127.0.0.1:9/v1 failed")


def test_stop_says_when_nothing_runs(tmp_path: Path):
    result = toolwise("stop", "--run-dir", str(tmp_path))
    assert (result.exit_code, result.output) == (0, "No endpoint was running\n")
