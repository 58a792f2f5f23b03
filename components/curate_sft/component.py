"""Step 3: the trajectories worth imitating."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def curate_sft(
    settings: str,
    seed: int,
    model: dsl.Input[dsl.Model],
    trajectories: dsl.Input[dsl.Dataset],
    corpus: dsl.Input[dsl.Dataset],
    curated: dsl.Output[dsl.Dataset],
):
    """Drop trajectories that do not reproduce, that the base model does not need, or that are idle.

    Args:
        settings: section `curate_sft` of the profile, as JSON.
        seed: the run's seed.
        model: base model, asked every question without tools.
        trajectories: raw trajectories.
        corpus: what `text_search` searches when a trajectory is executed again.
        curated: folder with the trajectories kept (Parquet), the rejects and the report.
    """
    from toolwise.steps import run_step

    step = run_step(
        "curate-sft",
        settings,
        seed,
        model=model.path,
        trajectories=trajectories.path,
        corpus=corpus.path,
    )
    curated.metadata.update(step.publish(curated=curated.path))
