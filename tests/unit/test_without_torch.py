"""What runs in the images that hold no torch: the operator's steps, and the agent."""

from __future__ import annotations

from pathlib import Path

from missing_packages import run_without
from served import free_port

MODELS = ("torch", "torchvision", "transformers", "trl", "peft", "accelerate", "datasets")
OPERATOR = (
    "toolwise.cli",
    "toolwise.steps",
    "toolwise.preparation",
    "toolwise.synthetic.environment",
    "toolwise.promotion.judging",
    "toolwise.promotion.lineage",
    "toolwise.promotion.model_card",
    "toolwise.promotion.registry",
    "toolwise.serving.deploy",
    "toolwise.serving.kubernetes_deploy",
    "toolwise.evaluation.metrics",
    "toolwise.evaluation.runner",
    "toolwise.report",
    "toolwise.steps.fitting",
    "toolwise.steps.node",
    "toolwise.training.launcher.estimate",
    "toolwise.training.launcher.estimate_table",
    "toolwise.training.launcher.following",
    "toolwise.training.launcher.machine",
    "toolwise.training.launcher.trainjob",
    "toolwise.training.launcher.vllm_servers",
    "pipelines.metis",
    "pipelines.submit",
)
AGENT = (
    "toolwise.serving.server",
    "toolwise.serving.model",
    "toolwise.serving.routes",
    "toolwise.serving.telemetry",
    "toolwise.agent.openai_engine",
    "toolwise.tracking.served",
)


def test_the_images_without_torch_can_import_what_they_run():
    ran = run_without(MODELS, f"import {', '.join(OPERATOR + AGENT)}")
    assert ran.returncode == 0, ran.stderr


def test_a_training_is_followed_without_torch():
    ran = run_without(
        MODELS,
        """
from types import SimpleNamespace
from toolwise.steps.alarm import TrainingLog

logged, tags = [], []
log = TrainingLog(SimpleNamespace(
    log=lambda metrics, step: logged.append(step), tag=lambda name, said: tags.append(name)
))
log({"accuracy": 0.5, "missed_call_rate": 0.0, "collapse_alarm": 0.0}, 1)
log({"accuracy": 0.1, "missed_call_rate": 0.4, "collapse_alarm": 1.0}, 2)
assert (logged, tags) == ([1, 2], ["toolwise.collapse"])
""",
    )
    assert ran.returncode == 0, ran.stderr


def test_a_checkpoint_that_would_need_torch_is_refused_with_what_to_install(tmp_path: Path):
    arguments = ["--name=m", f"--model-dir={tmp_path}", f"--port={free_port()}", "--isolation=none"]
    ran = run_without(
        MODELS,
        f"from toolwise.serving.server import main; sys.exit(main({arguments!r}))",
    )
    assert ran.returncode == 2
    assert "toolwise[serve]" in ran.stderr
    assert "--upstream" in ran.stderr
