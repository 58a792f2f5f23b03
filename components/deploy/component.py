"""Step 9, only behind a promotion: the endpoint."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def deploy(
    settings: str,
    seed: int,
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    benchmark: dsl.Input[dsl.Dataset],
    corpus: dsl.Input[dsl.Dataset],
    endpoint: dsl.Output[dsl.Artifact],
):
    """Serve the promoted model and ask it one question that needs no tool and one that does.

    Args:
        settings: sections `serve` and `kubeflow.serving` of the profile, as JSON.
        seed: the run's seed.
        model: promoted checkpoint.
        evaluation: its evaluation, which tells what it solves without tools and what with them.
        benchmark: where the two questions come from.
        corpus: what the served model's `text_search` searches.
        endpoint: address of the endpoint and what it answered (JSON).
    """
    from toolwise.steps import run_step

    step = run_step(
        "deploy",
        settings,
        seed,
        model=model.path,
        evaluation=evaluation.path,
        benchmark=benchmark.path,
        corpus=corpus.path,
    )
    endpoint.metadata.update(step.publish(endpoint=endpoint.path))
