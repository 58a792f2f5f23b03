"""Step 2: the model everything starts from."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def base_model(settings: str, seed: int, model: dsl.Output[dsl.Model]):
    """Train the small built-in base model, or fetch a published checkpoint.

    Args:
        settings: section `base` of the profile, as JSON.
        seed: the run's seed.
        model: Hugging Face checkpoint with processor; answers directly, never calls a tool.
    """
    from toolwise.steps import run_step

    step = run_step("base-model", settings, seed, address=model.uri)
    model.metadata.update(step.publish(model=model.path))
