"""Step 10: what a person reads."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def report(
    profile: str,
    seed: int,
    data: dsl.Input[dsl.Dataset],
    base_model: dsl.Input[dsl.Model],
    sft_curation: dsl.Input[dsl.Dataset],
    sft_model: dsl.Input[dsl.Model],
    rl_curation: dsl.Input[dsl.Dataset],
    hdpo_model: dsl.Input[dsl.Model],
    base_evaluation: dsl.Input[dsl.Artifact],
    sft_evaluation: dsl.Input[dsl.Artifact],
    hdpo_evaluation: dsl.Input[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    endpoint: dsl.Input[dsl.Artifact] = None,  # pyright: ignore[reportArgumentType]
):
    """Bring the measurements, the decision and the answers together on one page.

    Args:
        profile: name of the profile.
        seed: the run's seed.
        data: raw data; like each artifact here, it brings how long its step took.
        base_model: base checkpoint.
        sft_curation: curated trajectories with their report.
        sft_model: cold-start checkpoint.
        rl_curation: curated prompts with their report.
        hdpo_model: frugal checkpoint with the training log.
        base_evaluation: evaluation of the base model.
        sft_evaluation: evaluation of the cold-start model.
        hdpo_evaluation: evaluation of the frugal model.
        decision: the gate's decision.
        report: everything as one JSON file.
        page: everything as one HTML page.
        endpoint: what the endpoint answered, where there is one.
    """
    import json

    from toolwise.steps import run_step

    artifacts = {
        "data": data,
        "base_model": base_model,
        "sft_curation": sft_curation,
        "sft_model": sft_model,
        "rl_curation": rl_curation,
        "hdpo_model": hdpo_model,
        "base_evaluation": base_evaluation,
        "sft_evaluation": sft_evaluation,
        "hdpo_evaluation": hdpo_evaluation,
        "decision": decision,
        **({"endpoint": endpoint} if endpoint else {}),
    }
    seconds = {a.metadata["step"]: a.metadata["seconds"] for a in artifacts.values()}
    paths = {name: artifact.path for name, artifact in artifacts.items()}
    step = run_step("report", json.dumps({"profile": profile, "seconds": seconds}), seed, **paths)
    report.metadata.update(step.publish(report=report.path, page=page.path))
