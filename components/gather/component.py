"""Step 7 on a cluster, once per checkpoint: an evaluation from the answers to its benchmarks."""

# A list of artifacts has no type of its own in Kubeflow's annotations.
# pyright: reportGeneralTypeIssues=false, reportInvalidTypeArguments=false

from typing import List  # noqa: UP035 - Kubeflow knows lists of artifacts by this name only

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def gather(
    settings: str,
    seed: int,
    stage: str,
    model: dsl.Input[dsl.Model],
    benchmark: dsl.Input[dsl.Dataset],
    answers: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Measure a checkpoint by the answers it gave: what `evaluate` makes in one step.

    Args:
        settings: section `evaluate` of the profile, as JSON.
        seed: the run's seed.
        stage: `base`, `sft` or `hdpo`; names the checkpoint in the report.
        model: checkpoint that answered.
        benchmark: held-out tasks of all benchmarks.
        answers: answers to the items of each benchmark.
        evaluation: folder with scores, metrics with intervals, and sample rollouts.
        metrics: the overall figures, for the Kubeflow UI.
    """
    from typing import Any

    from toolwise.steps import headline_metrics, run_step

    parts: dict[str, Any] = {f"answers_{number}": part.path for number, part in enumerate(answers)}
    step = run_step(
        "evaluate",
        settings,
        seed,
        stage=stage,
        model=model.path,
        benchmark=benchmark.path,
        **parts,
    )
    seconds = sum(part.metadata["seconds"] for part in answers) + step.seconds
    evaluation.metadata.update(step.publish(evaluation=evaluation.path) | {"seconds": seconds})
    for name, value in headline_metrics(evaluation.path).items():
        metrics.log_metric(name, value)
