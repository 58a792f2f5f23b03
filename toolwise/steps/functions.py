"""What each step does: hand its inputs to one function of the library."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolwise.errors import InputError
from toolwise.events import EventSink
from toolwise.steps.alarm import TrainingLog
from toolwise.steps.lineage import linked
from toolwise.steps.running import (
    RUN_VARIABLE,
    FinishedStep,
    Step,
    experiment_name,
    perform,
    pipeline_run,
)
from toolwise.steps.training import Outputs, training

if TYPE_CHECKING:
    from toolwise.data import Task
    from toolwise.promotion.gate import Decision

RUN_ID_FILE = "mlflow_run"
"""File of an evaluation with the id of the MLflow run that holds it, for the registry."""

ANSWERS = "answers"
"""How the names of an evaluation's inputs begin that hold the answers to one benchmark each."""


def evaluation_run(evaluation: Path) -> str | None:
    """Id of the MLflow run that holds an evaluation; None where its folder does not say."""
    file = evaluation / RUN_ID_FILE
    return file.read_text().strip() if file.exists() else None


def prepare_data(step: Step) -> Outputs:
    """Make the built-in environment, or read published data."""
    from toolwise.preparation import FILES, prepare_published
    from toolwise.profile import DataSettings

    settings = step.settings_as(DataSettings)
    folder = step.folder / "data"
    if settings.published:
        rejected = prepare_published(settings.published, folder, step.seed, step.events.progress)
        step.run.log({"rejected_rows": rejected})
        for file in folder.glob("*.rejects.jsonl"):
            step.run.artifact(file)
            print(f"Some rows could not be read; {file} says which and why")
    elif settings.signboard:
        from toolwise.synthetic.environment import write_signboard

        write_signboard(folder, step.seed, settings.signboard)
    return {kind: folder / name for kind, name in FILES.items() if (folder / name).exists()}


def base_model(step: Step) -> Outputs:
    """Train the built-in base model, or fetch a published one."""
    from toolwise.profile import BaseModelSettings
    from toolwise.storage import local_copy

    settings = step.settings_as(BaseModelSettings)
    if settings.checkpoint:
        return {"model": local_copy(settings.checkpoint)}
    assert settings.train is not None
    from toolwise.training.launcher import launch

    model = step.folder / "model"
    launch(
        "toolwise.training.base:train_base",
        settings.train.processes,
        out_dir=model,
        seed=step.seed,
        settings=settings.train,
        log=step.run.log,
        progress=step.events.progress,
    )
    return {"model": model}


def curate_sft(step: Step) -> Outputs:
    """Keep the trajectories worth imitating."""
    from toolwise.curation.sft import SftCurationSettings
    from toolwise.curation.sft import curate_sft as curate

    folder = step.folder / "curated"
    curate(
        step.inputs.get("model"),
        step.path("trajectories"),
        step.inputs.get("corpus"),
        folder,
        step.settings_as(SftCurationSettings),
        seed=step.seed,
        progress=step.events.progress,
    )
    for name in ("report.json", "report.html"):
        step.run.artifact(folder / name)
    return {"curated": folder}


def train_sft(step: Step) -> Outputs:
    """The cold start."""
    from toolwise.tools import tool_schemas
    from toolwise.training.launcher import launch
    from toolwise.training.settings import SftSettings

    checkpoint = step.folder / "checkpoint"
    settings = step.settings_as(SftSettings)
    launch(
        "toolwise.training.sft:train_sft",
        settings.processes,
        gpus=settings.hardware is not None,
        model_dir=step.path("model"),
        trajectories=step.path("curated") / "curated.parquet",
        out_dir=checkpoint,
        settings=settings,
        seed=step.seed,
        tools=tool_schemas(settings.search),
        log=step.run.log,
        progress=step.events.progress,
    )
    return {"checkpoint": checkpoint}


def curate_rl(step: Step) -> Outputs:
    """Keep the prompts reinforcement learning can learn from."""
    from toolwise.curation.rl import RlCurationSettings
    from toolwise.curation.rl import curate_rl as curate

    folder = step.folder / "curated"
    curate(
        step.inputs.get("model"),
        step.path("tasks"),
        step.inputs.get("corpus"),
        folder,
        step.settings_as(RlCurationSettings),
        seed=step.seed,
        benchmark=step.inputs.get("benchmark"),
        progress=step.events.progress,
    )
    for name in ("report.json", "report.html"):
        step.run.artifact(folder / name)
    return {"curated": folder}


def train_hdpo(step: Step) -> Outputs:
    """Reinforcement learning that cures needless calls."""
    from toolwise.training.launcher import launch
    from toolwise.training.settings import HdpoSettings

    checkpoint = step.folder / "checkpoint"
    settings = step.settings_as(HdpoSettings)
    launch(
        "toolwise.training.hdpo.run:train_hdpo",
        settings.processes,
        gpus=settings.hardware is not None,
        model_dir=step.path("model"),
        tasks=step.path("curated") / "curated.parquet",
        corpus=step.path("corpus"),
        out_dir=checkpoint,
        settings=settings,
        seed=step.seed,
        log=TrainingLog(step.run),
        progress=step.events.progress,
    )
    return {"checkpoint": checkpoint}


def answer(step: Step, source: str) -> Outputs:
    """Give a checkpoint's answers to one benchmark's items."""
    from toolwise.evaluation.runner import EvaluationSettings, answer_source

    answers = step.folder / "answers.jsonl"
    answer_source(
        step.path("model"),
        step.path("benchmark"),
        step.path("corpus"),
        answers,
        step.settings_as(EvaluationSettings),
        seed=step.seed,
        source=source,
        progress=step.events.progress,
    )
    return {"answers": answers}


def evaluate(step: Step) -> Outputs:
    """Measure a checkpoint with and without tools, by answers given before or from nothing."""
    from toolwise.evaluation.runner import EvaluationSettings, gather
    from toolwise.evaluation.runner import evaluate as measure

    folder = step.folder / "evaluation"
    settings = step.settings_as(EvaluationSettings)
    answers = [path for name, path in step.inputs.items() if name.startswith(ANSWERS)]
    if answers:
        gather(answers, step.path("benchmark"), folder, settings, step.seed)
    else:
        measure(
            step.path("model"),
            step.path("benchmark"),
            step.path("corpus"),
            folder,
            settings,
            seed=step.seed,
            progress=step.events.progress,
        )
    stage = step.label.removeprefix("evaluate ")
    step.run.evaluation(stage, folder, step.path("benchmark"), step.path("model"))
    (folder / RUN_ID_FILE).write_text(step.run.run_id)
    return {"evaluation": folder}


def promote(step: Step) -> Outputs:
    """Decide, register the checkpoint, and crown it if it passed."""
    from toolwise.promotion.judging import judge
    from toolwise.promotion.lineage import read_lineage
    from toolwise.promotion.model_card import description, model_card
    from toolwise.promotion.policy import GatePolicy
    from toolwise.promotion.registry import Registry
    from toolwise.tracking import Connection

    challenger = step.path("challenger")
    run_id = evaluation_run(challenger)
    if run_id is None:
        raise InputError(
            f"{challenger}: no {RUN_ID_FILE} file, which names the MLflow run of the evaluation; "
            "the registry reads a champion's scores there. Evaluate the model with this release"
        )
    connection = Connection()
    registry = Registry(experiment_name(), connection)
    judged = judge(
        registry,
        step.settings_as(GatePolicy),
        challenger,
        step.path("baseline"),
        model=step.path("model"),
        run_id=run_id,
        champion=step.inputs.get("champion"),
    )
    source = step.address or str(step.path("model"))
    version = registry.register(run_id, source)
    lineage = read_lineage(connection, run_id)
    metrics = json.loads((challenger / "metrics.json").read_text(encoding="utf-8"))
    card, file = step.folder / "model_card.md", step.folder / "decision.json"
    whole = f"runs:/{step.run.run_id}/{card.name}"

    def state(decision: Decision) -> None:
        known = (registry.name, lineage, metrics, decision, source)
        card.write_text(model_card(*known), encoding="utf-8")
        registry.describe(version, description(*known, whole), lineage.tags())
        decision.write(file)

    # The aliases move last: whatever fails before them has promoted nothing.
    state(judged.decision)
    decision = registry.record(version, *judged)
    if decision != judged.decision:  # another version was promoted meanwhile
        state(decision)
    print(decision.explain())
    step.run.artifact(card)
    step.run.artifact(file)
    return {"decision": file}


def deploy(step: Step) -> Outputs:
    """Serve the promoted model, and ask it one item it solves without tools and one with."""
    from toolwise.serving.cluster import DeploymentSettings
    from toolwise.serving.deploy import Endpoint, ask_two, check_answered, deploy_local

    settings = step.settings_as(DeploymentSettings)
    model, corpus = step.path("model"), step.path("corpus")
    questions = _two_items(step.path("evaluation"), step.path("benchmark"))
    answers = step.folder / "endpoint.json"

    def attempt(endpoint: Endpoint) -> None:
        check_answered(ask_two(endpoint, *questions, answers))

    if settings.cluster is None:
        deploy_local(model, corpus, step.folder.parent, settings.serve, attempt)
        for name in ("model", "corpus"):
            _point(step.folder.parent / name, step.path(name))
    else:
        from toolwise.serving.kubernetes_deploy import deploy_checkpoint

        deploy_checkpoint(
            model,
            corpus,
            settings.serve,
            settings.cluster,
            attempt,
            told=lambda why: step.events.progress(0, 1, why),
            still_wanted=lambda: _check_champion(step.path("evaluation")),
        )
    step.run.artifact(answers)
    return {"endpoint": answers}


def _check_champion(evaluation: Path) -> None:
    """Refuse a version that a pipeline run has promoted and that is champion no more.

    By hand any checkpoint may be deployed.
    """
    from toolwise.promotion.registry import Registry
    from toolwise.tracking import Connection

    ours = evaluation_run(evaluation)
    if ours is None or RUN_VARIABLE not in os.environ:
        return
    name = experiment_name()
    champion = Registry(name, Connection()).champion_run()
    if champion not in (None, ours):
        raise InputError(
            f"what this run has promoted is no longer the champion of {name}: another version has "
            "become it meanwhile, and is for its own run to deploy. Nothing has changed"
        )


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to what is deployed now, for whoever wants to serve it again."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _two_items(evaluation: Path, benchmark: Path) -> tuple[Task, Task]:
    """An item the model solves without tools and one it does not, right ones if there are any."""
    from toolwise.data.parquet import read_tasks
    from toolwise.evaluation.metrics import read_scores, solvable_items

    scores = read_scores(evaluation / "scores.jsonl")
    solvable = solvable_items(scores)
    right = {row.task_id for row in scores if row.mode == "greedy" and row.correct}
    tasks = read_tasks(benchmark)

    def best(solved_without_tools: bool) -> Task:
        return max(tasks, key=lambda t: (solvable.get(t.id) is solved_without_tools, t.id in right))

    return best(True), best(False)


def report(step: Step) -> Outputs:
    """Bring the measurements, the decision and the answers together."""
    from toolwise.report import build_report

    facts = json.loads(step.settings)
    summary = build_report(
        stages={stage: step.path(f"{stage}_evaluation") for stage in ("base", "sft", "hdpo")},
        decision=step.path("decision"),
        training_log=step.path("hdpo_model") / "train_log.jsonl",
        curation_reports=[step.path(f"{kind}_curation") / "report.json" for kind in ("sft", "rl")],
        seconds=facts["seconds"],
        endpoint=step.inputs.get("endpoint"),
        seed=step.seed,
        out_dir=step.folder,
        profile=facts["profile"],
    )
    page = step.folder / "report.html"
    for file in (summary, page):
        step.run.artifact(file)
    return {"report": summary, "page": page}


STEPS: dict[str, Callable[[Step], Outputs]] = {
    "prepare-data": prepare_data,
    "base-model": linked(base_model),
    "curate-sft": linked(curate_sft),
    "train-sft": linked(training(train_sft)),
    "curate-rl": linked(curate_rl),
    "train-hdpo": linked(training(train_hdpo)),
    "evaluate": evaluate,
    "promote": promote,
    "deploy": deploy,
    "report": report,
}

# A served process may be gone by the next run, and what it answers may have changed.
ALWAYS_DONE_AGAIN = frozenset({"deploy", "report"})


def run_step(
    name: str,
    settings: str,
    seed: int,
    *,
    stage: str = "",
    again: bool = False,
    sink: EventSink | None = None,
    address: str = "",
    **inputs: str,
) -> FinishedStep:
    """Run a step, or find it done by an earlier run with the same code, settings and inputs.

    Args:
        name: a key of `STEPS`.
        settings: its section of the profile, as JSON.
        seed: the run's seed.
        stage: the checkpoint an evaluation is of.
        again: do it even if an earlier run did.
        sink: who hears of its progress; by default whom the environment names.
        address: where its checkpoint is published; see `perform`.
        inputs: paths by input name.

    Raises:
        ToolwiseError: as the step raises it; whoever watches is told before.
    """
    label = f"{name} {stage}".rstrip()
    again = again or name in ALWAYS_DONE_AGAIN
    work = STEPS[name]
    return perform(work, label, settings, seed, inputs, again=again, sink=sink, address=address)


def run_answers(
    settings: str, seed: int, *, stage: str, source: str, **inputs: str
) -> FinishedStep:
    """Run one benchmark's share of an evaluation; see `run_step`.

    Args:
        settings: section `evaluate` of the profile, as JSON.
        seed: the run's seed.
        stage: the checkpoint that answers.
        source: the benchmark.
        inputs: paths by input name.
    """
    label = f"answer {stage} {source}"
    return perform(partial(answer, source=source), label, settings, seed, inputs)


def run_promotion(settings: str, seed: int, *, address: str, **inputs: str) -> FinishedStep:
    """Run the gate, every time: there may be another champion since; see `run_step`.

    Args:
        settings: section `promote` of the profile, as JSON.
        seed: the run's seed.
        address: of the checkpoint; see `perform`.
        inputs: paths by input name.
    """
    return perform(promote, "promote", settings, seed, inputs, again=True, address=address)


_SUCCEEDED = frozenset({"SUCCEEDED", "COMPLETE", "CACHED"})
"""Kubeflow's documentation and its local runner say the first, its backend the others."""

_CANCELLED = frozenset({"CANCELLED", "CANCELED"})


def finish_run(state: str, reason: str = "", last: str = "") -> None:
    """Close the MLflow run that the steps of the pipeline run logged under.

    Args:
        state: how the pipeline ended, in Kubeflow's words. Its backend says `RUNNING` of a pipeline
            with a loop (kubeflow/pipelines#13321): then the steps' own runs tell.
        reason: why; Kubeflow's backend leaves it empty, and the steps' own runs say it.
        last: the step that a pipeline which succeeded has finished; empty where there is none that
            every run does.
    """
    from toolwise import tracking

    run = pipeline_run()
    if state in _SUCCEEDED:
        tracking.end_pipeline_run(run)
    elif state in _CANCELLED:
        tracking.end_pipeline_run(run, failure=reason or "cancelled", cancelled=True)
    elif state == "FAILED":
        tracking.end_pipeline_run(run, failure=reason or "a step failed", by_steps=not reason)
    else:
        unclear = f"Kubeflow says {state or 'nothing'}, and not how it ended"
        tracking.end_pipeline_run(run, failure=unclear, by_steps=True, last=last)


def headline_metrics(evaluation: str) -> dict[str, float]:
    """The overall metrics of an evaluation folder, greedy and sampled, by MLflow's names."""
    from toolwise.evaluation.metrics import OVERALL, flatten

    summaries = json.loads((Path(evaluation) / "metrics.json").read_text())
    return {
        name: value
        for mode in ("greedy", "sampled")
        for name, value in flatten({OVERALL: summaries[mode][OVERALL]}, mode).items()
    }


def promoted(decision: str) -> bool:
    """Whether a decision file promotes."""
    from toolwise.promotion.gate import Decision

    return Decision.read(Path(decision)).decision == "promote"
