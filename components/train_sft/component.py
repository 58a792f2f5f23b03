"""Step 4: the cold start."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train_sft(
    settings: str,
    seed: int,
    model: dsl.Input[dsl.Model],
    curated: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
):
    """Teach the base model to call tools, by supervised fine-tuning on assistant tokens.

    Args:
        settings: section `sft` of the profile, as JSON.
        seed: the run's seed.
        model: base model.
        curated: curated trajectories.
        checkpoint: the cold-start model.
    """
    from toolwise.steps import run_step

    step = run_step(
        "train-sft",
        settings,
        seed,
        address=checkpoint.uri,
        model=model.path,
        curated=curated.path,
    )
    checkpoint.metadata.update(step.publish(checkpoint=checkpoint.path))
