"""Step 7, once per checkpoint: how often it calls, how often it must, how often it is right."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(
    settings: str,
    seed: int,
    stage: str,
    model: dsl.Input[dsl.Model],
    benchmark: dsl.Input[dsl.Dataset],
    corpus: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Answer the benchmark with tools and, as the counterfactual, without.

    Args:
        settings: section `evaluate` of the profile, as JSON.
        seed: the run's seed.
        stage: `base`, `sft` or `hdpo`; names the checkpoint in the report.
        model: checkpoint to measure.
        benchmark: held-out tasks.
        corpus: what `text_search` searches.
        evaluation: folder with scores, metrics with intervals, and sample rollouts.
        metrics: the overall figures, for the Kubeflow UI.
    """
    import json
    from pathlib import Path

    from toolwise.steps import headline_metrics, run_step

    step = run_step(
        "evaluate",
        settings,
        seed,
        stage=stage,
        model=model.path,
        benchmark=benchmark.path,
        corpus=corpus.path,
    )
    evaluation.metadata.update(step.publish(evaluation=evaluation.path))
    for name, value in headline_metrics(evaluation.path).items():
        metrics.log_metric(name, value)
    # Kubeflow's local runner re-uses a step only where a file stands for each of its outputs.
    Path(metrics.path).write_text(json.dumps(metrics.metadata))
