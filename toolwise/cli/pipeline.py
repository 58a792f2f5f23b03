"""Commands that run, compile and compare the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolwise.cli.application import RUN, app, stdout
from toolwise.cli.options import (
    ProfileOption,
    RegistryOption,
    RunFolderOption,
    SeedOption,
    TagOption,
    VariantsOption,
)

if TYPE_CHECKING:
    from pipelines.plan import Plan
    from toolwise.profile import Profile


@app.command(rich_help_panel=RUN)
def run(
    profile: ProfileOption = "demo", seed: SeedOption = None, run_dir: RunFolderOption = None
) -> None:
    """Run the whole pipeline on this machine; finished steps are re-used."""
    from pipelines.local import print_outcome, run_locally
    from toolwise.profile import load_profile

    settings = load_profile(profile)
    chosen_seed = settings.seed if seed is None else seed
    folder = run_dir or Path("runs") / settings.name
    report_json = run_locally(settings, chosen_seed, folder, stdout)
    print_outcome(report_json, stdout)


@app.command("compile", rich_help_panel=RUN)
def compile_(
    profile: ProfileOption = "demo",
    out: Annotated[
        Path | None,
        typer.Option(help="YAML file to write; build/metis-<profile>.yaml by default."),
    ] = None,
    variants: VariantsOption = None,
    registry: RegistryOption = None,
    tag: TagOption = None,
) -> None:
    """Compile the pipeline to Kubeflow's IR YAML."""
    from toolwise.profile import load_profile

    write_plan(plan_of(with_images(load_profile(profile), registry, tag), variants), out)


def plan_of(profile: Profile, variants: Path | None) -> Plan:
    """The pipeline of the profile, or its ablation where variants were named."""
    if variants is None:
        from pipelines.metis import plan

        return plan(profile)
    from pipelines.ablation import plan as ablation
    from pipelines.ablation import read_variants

    return ablation(profile, read_variants(variants))


def write_plan(plan: Plan, out: Path | None = None) -> None:
    path = out or Path("build") / f"{plan.name}.yaml"
    plan.write(path)
    stdout.print(f"Wrote {path}", soft_wrap=True)


def with_images(profile: Profile, registry: str | None, tag: str | None) -> Profile:
    """The profile with its images as they were named, where they were."""
    from toolwise.profile import REGISTRY

    if registry is None and tag is None:
        return profile
    return profile.at_registry(REGISTRY if registry is None else registry, tag)


@app.command(rich_help_panel=RUN)
def estimate(profile: ProfileOption = "demo") -> None:
    """Say what the training steps need of memory and time, and whether that is there."""
    from toolwise.profile import load_profile

    show_estimate(load_profile(profile))


def show_estimate(profile: Profile) -> None:
    """Print what the training steps need; raises `InputError` where one cannot fit."""
    from toolwise.training.launcher.estimate import check, estimate_profile
    from toolwise.training.launcher.estimate_table import print_estimate

    estimates = estimate_profile(profile)
    for needed in estimates:
        print_estimate(needed, stdout)
    for needed in estimates:
        check(needed)


@app.command(rich_help_panel=RUN)
def report(
    path: Annotated[Path, typer.Argument(help="report.json of a run.")] = Path(
        "runs/demo/report.json"
    ),
) -> None:
    """Print the figures of a finished run."""
    from toolwise.report import print_report

    print_report(path, stdout)


@app.command(rich_help_panel=RUN)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Pipeline runs, by MLflow's name or id; the newest by default."),
    ] = None,
    profile: ProfileOption = "demo",
    sampled: Annotated[
        bool, typer.Option("--sampled", help="The answers at temperature 1, not the greedy ones.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("compare.svg"),
) -> None:
    """Compare the checkpoints of runs in MLflow: accuracy against tool rates."""
    from toolwise.cli.tracking import name_tracking
    from toolwise.report.comparison import Compared, comparison_plot, print_comparison
    from toolwise.steps.running import experiment_name
    from toolwise.storage import atomic_file
    from toolwise.tracking import Connection
    from toolwise.tracking.evaluations import read_evaluations

    name_tracking(profile)
    found = read_evaluations(Connection(), experiment_name(), runs or ())
    compared = [Compared(one.run, one.stage, one.metrics) for one in found]
    mode = "sampled" if sampled else "greedy"
    print_comparison(compared, stdout, mode)
    with atomic_file(out) as partial:
        partial.write_bytes(comparison_plot(compared, mode))
    stdout.print(f"Wrote {out}", soft_wrap=True)
