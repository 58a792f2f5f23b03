"""A training whose model stops calling where it must says so: in its log and in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import mlflow
import pytest
from recorded_rollouts import PROMPTS, RecordedAgent, arguments, base_model, load, right
from transformers import TrainerState

from toolwise import tracking
from toolwise.agent import Rollout, Sampling
from toolwise.agent.processor import load_processor
from toolwise.data import Task
from toolwise.steps.alarm import TrainingLog
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer, collapse
from toolwise.training.resuming import _Reporting

GOOD, BAD = 4, 5
"""Steps with one call and the right answer each, then with none and wrong ones."""


class Tiring(RecordedAgent):
    """Calls and is right, until it does not call any more and is wrong."""

    steps = 0

    def answer(
        self, tasks: Sequence[Task], sampling: Sampling, *, tool_free: bool = False
    ) -> list[Rollout]:
        self.steps += 1
        kind = 2 if self.steps <= GOOD else 1
        return [self.rollouts[task.id][kind] for task in tasks]


def test_a_collapse_is_logged_warned_of_once_and_tagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collapse, "GROUPS", (GOOD * len(PROMPTS),))
    monkeypatch.setattr(collapse, "STEPS", GOOD)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.getLogger("toolwise").propagate = True
    base = base_model(tmp_path)
    processor = load_processor(base)
    settings = arguments(tmp_path, max_steps=GOOD + BAD, report_to=["mlflow"])
    trainer = HDPOTrainer(
        model=load(base),
        reward_funcs=right,
        args=HDPOConfig(**settings, run_name="tiring"),
        processing_class=processor,
        agent=Tiring(processor),
        tasks=PROMPTS,
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "accuracy" in entry]
    assert [entry["accuracy"] for entry in log] == [1.0] * GOOD + [0.0] * BAD
    assert [entry["missed_call_rate"] for entry in log] == [0.0] * GOOD + [1.0] * BAD
    # A whole window after it and a whole one before it: at the eighth step and after.
    assert [entry["collapse_alarm"] for entry in log] == [0.0] * 7 + [1.0, 1.0]
    said = [record.message for record in caplog.records if "collapsing" in record.message]
    assert said == [
        "tool use is collapsing: since step 4 accuracy fell from 1.00 to 0.00, and wrong answers "
        "without a call rose from 0.00 to 1.00 of all rollouts"
    ]
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    # The tag is that of the step that raised it, as in a run of the pipeline.
    tag = "step 8: accuracy 0.00, wrong answers without a call 1.00 of all rollouts"
    assert run.data.tags[collapse.TAG] == tag
    assert run.data.metrics["collapse_alarm"] == 1.0
    with tracking.step(tracking.PipelineRun("pipelines", "run"), "train-hdpo") as step:
        log_step = TrainingLog(step)
        for entry in log:
            rates = {name: entry[name] for name in ("accuracy", collapse.MISSED, collapse.ALARM)}
            log_step(rates, entry["step"])
        step.flush()
    logged = mlflow.get_run(step.run_id).data
    assert logged.tags[collapse.TAG] == tag
    assert logged.metrics["collapse_alarm"] == 1.0


def test_a_resumed_training_is_tagged_with_the_step_that_raised_the_alarm(tmp_path: Path) -> None:
    """Its MLflow run is a new one, which has not heard of the steps before."""
    rates = {"accuracy": 0.0, collapse.MISSED: 1.0}
    on = [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    history = [rates | {collapse.ALARM: alarm, "step": n} for n, alarm in enumerate(on, start=1)]
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.step(tracking.PipelineRun("pipelines", "run"), "train-hdpo") as step:
        reporting = _Reporting(TrainingLog(step), None)
        state = TrainerState(log_history=history[:5])
        reporting.on_train_begin(None, state, None)
        state.global_step = 6
        reporting.on_log(None, state, None, rates | {collapse.ALARM: on[5]})
        step.flush()
    said = mlflow.get_run(step.run_id).data.tags[collapse.TAG]
    assert said.startswith("step 4: accuracy 0.00")
