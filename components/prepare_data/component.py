"""Step 1: the data every later step works on."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def prepare_data(
    settings: str,
    seed: int,
    trajectories: dsl.Output[dsl.Dataset],
    tasks: dsl.Output[dsl.Dataset],
    benchmark: dsl.Output[dsl.Dataset],
    corpus: dsl.Output[dsl.Dataset],
):
    """Make or fetch trajectories, prompts, a benchmark and the search corpus.

    Args:
        settings: section `data` of the profile, as JSON.
        seed: the run's seed.
        trajectories: raw tool-using trajectories for the SFT cold start (Parquet).
        tasks: prompts for reinforcement learning (Parquet).
        benchmark: held-out tasks every checkpoint is measured on (Parquet).
        corpus: what `text_search` searches (JSON lines).
    """
    from toolwise.steps import run_step

    outputs = run_step("prepare-data", settings, seed).publish(
        trajectories=trajectories.path,
        tasks=tasks.path,
        benchmark=benchmark.path,
        corpus=corpus.path,
    )
    trajectories.metadata.update(outputs)
