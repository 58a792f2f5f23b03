"""Step 8: the gate."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def promote(
    settings: str,
    seed: int,
    model: dsl.Input[dsl.Model],
    challenger: dsl.Input[dsl.Artifact],
    baseline: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
) -> bool:
    """Compare bounds with the policy, register the model, and move the alias `champion`.

    Args:
        settings: section `promote` of the profile (the gate's policy), as JSON.
        seed: the run's seed.
        model: the challenger's checkpoint.
        challenger: its evaluation.
        baseline: evaluation of the model it was trained from; its accuracy is compared with that
            of the champion, and with this one's where there is no champion yet.
        decision: each criterion with value, bound, threshold and verdict (JSON).

    Returns:
        Whether the challenger was promoted.
    """
    from toolwise.steps import promoted, run_promotion

    step = run_promotion(
        settings,
        seed,
        address=model.uri,
        model=model.path,
        challenger=challenger.path,
        baseline=baseline.path,
    )
    decision.metadata.update(step.publish(decision=decision.path))
    return promoted(decision.path)
