"""Step 7 on a cluster, once per checkpoint and benchmark: the answers, which `gather` measures."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def answer(
    settings: str,
    seed: int,
    stage: str,
    source: str,
    model: dsl.Input[dsl.Model],
    benchmark: dsl.Input[dsl.Dataset],
    corpus: dsl.Input[dsl.Dataset],
    answers: dsl.Output[dsl.Artifact],
):
    """Answer one benchmark's items with tools and, as the counterfactual, without.

    Args:
        settings: section `evaluate` of the profile, as JSON.
        seed: the run's seed.
        stage: `base`, `sft` or `hdpo`; names the checkpoint.
        source: name of the benchmark whose items are answered.
        model: checkpoint to measure.
        benchmark: held-out tasks of all benchmarks.
        corpus: what `text_search` searches.
        answers: scored answers and some whole rollouts (JSON lines).
    """
    from toolwise.steps import run_answers

    step = run_answers(
        settings,
        seed,
        stage=stage,
        source=source,
        model=model.path,
        benchmark=benchmark.path,
        corpus=corpus.path,
    )
    answers.metadata.update(step.publish(answers=answers.path))
