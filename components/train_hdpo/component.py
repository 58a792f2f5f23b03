"""Step 6: the cure."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train_hdpo(
    settings: str,
    seed: int,
    model: dsl.Input[dsl.Model],
    curated: dsl.Input[dsl.Dataset],
    corpus: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
):
    """Teach the cold-start model to call a tool only where it must, by HDPO.

    Args:
        settings: section `hdpo` of the profile, as JSON.
        seed: the run's seed.
        model: cold-start model.
        curated: curated prompts.
        corpus: what `text_search` searches.
        checkpoint: the frugal model, with the training log beside it.
    """
    from toolwise.steps import run_step

    step = run_step(
        "train-hdpo",
        settings,
        seed,
        address=checkpoint.uri,
        model=model.path,
        curated=curated.path,
        corpus=corpus.path,
    )
    checkpoint.metadata.update(step.publish(checkpoint=checkpoint.path))
