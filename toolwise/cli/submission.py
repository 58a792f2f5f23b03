"""Commands that submit the pipeline to Kubeflow, and follow it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from toolwise.cli.application import RUN, app, stderr, stdout
from toolwise.cli.options import (
    HostOption,
    ProfileOption,
    RegistryOption,
    SeedOption,
    TagOption,
    VariantsOption,
)
from toolwise.cli.pipeline import plan_of, show_estimate, with_images, write_plan
from toolwise.errors import InputError

if TYPE_CHECKING:
    from pipelines.plan import Plan
    from pipelines.submission.api import PipelinesApi
    from toolwise.profile import Profile


@app.command(rich_help_panel=RUN)
def submit(
    profile: ProfileOption = "qwen3-vl-8b",
    seed: SeedOption = None,
    host: HostOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compile and check the cluster; submit nothing.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Stay until the run has ended.")] = True,
    skip_preflight: Annotated[
        bool, typer.Option("--skip-preflight", help="Do not check the cluster first.")
    ] = False,
    registry: RegistryOption = None,
    tag: TagOption = None,
    variants: VariantsOption = None,
) -> None:
    """Submit the pipeline to a Kubeflow Pipelines server, and follow the run.

    KFP_TOKEN, KFP_COOKIE, or KFP_USERNAME and KFP_PASSWORD sign in (docs/operating.md).
    """
    from pipelines.submission.following import how_to_go_on
    from pipelines.submit import open_server, submit_pipeline

    settings = with_images(_submitted_profile(profile), registry, tag)
    plan = plan_of(settings, variants)
    if dry_run:
        show_estimate(settings)
        write_plan(plan)
        if not skip_preflight:
            _preflight(settings)
        stdout.print("Nothing was submitted")
        return
    with open_server(host) as api:
        show_estimate(settings)
        if not skip_preflight:
            _preflight(settings)
        submitted = submit_pipeline(settings, settings.seed if seed is None else seed, api, plan)
        page = api.server.page(submitted.run_id, lasting=not follow)
        stdout.print(f"Submitted {submitted.name}: {page}", soft_wrap=True)
        again = _following(submitted.run_id, profile, host, variants)
        if follow:
            _follow(settings, plan, submitted.run_id, api, again)
        else:
            stdout.print(how_to_go_on(again), soft_wrap=True)


@app.command("follow", rich_help_panel=RUN)
def follow_(
    run_id: Annotated[str, typer.Argument(help="Id of a submitted run.")],
    profile: ProfileOption = "qwen3-vl-8b",
    host: HostOption = None,
    variants: VariantsOption = None,
) -> None:
    """Follow a submitted run to its end.

    Exits 1 where the run failed, and 3 where it could not be followed to its end.
    """
    from pipelines.submission.following import in_sight
    from pipelines.submit import open_server

    settings = _submitted_profile(profile)
    plan = plan_of(settings, variants)
    again = _following(run_id, profile, host, variants)
    with in_sight(again), open_server(host) as api:
        stdout.print(f"Following {api.server.page(run_id)}", soft_wrap=True)
        _follow(settings, plan, run_id, api, again)


def _following(run_id: str, profile: str, host: str | None, variants: Path | None) -> str:
    """The command that follows a run, with what was named for it."""
    named = [] if host is None else ["--host", host]
    named += [] if variants is None else ["--variants", str(variants)]
    return shlex.join([*_program(), "follow", run_id, "--profile", profile, *named])


def _program() -> list[str]:
    """How this program was started, for a person to start it again."""
    script = Path(sys.argv[0])
    if script.name != "toolwise":
        return [sys.executable, "-m", "toolwise.cli"]
    found = shutil.which("toolwise")
    return ["toolwise" if found and Path(found).samefile(script) else str(script)]


def _follow(profile: Profile, plan: Plan, run_id: str, api: PipelinesApi, again: str) -> None:
    """Follow a run; Ctrl-C leaves it going."""
    from pipelines.submission.following import how_to_go_on
    from pipelines.submit import follow_run

    try:
        follow_run(profile, plan, run_id, api, stdout, again)
    except KeyboardInterrupt:
        stdout.print(how_to_go_on(again), soft_wrap=True)
        raise typer.Exit(130) from None


def _submitted_profile(name: str) -> Profile:
    """A profile that says how to run on Kubeflow."""
    from pipelines.submit import kubeflow_of
    from toolwise.profile import load_profile

    profile = load_profile(name)
    kubeflow_of(profile)
    return profile


@app.command(rich_help_panel=RUN)
def preflight(
    profile: ProfileOption = "qwen3-vl-8b",
    registry: RegistryOption = None,
    tag: TagOption = None,
) -> None:
    """Check that the cluster has what a profile needs, and say how to mend what it lacks."""
    from pipelines.preflight import Unreachable

    try:
        _check_cluster(with_images(_submitted_profile(profile), registry, tag))
    except Unreachable as why:
        raise InputError(f"there is no cluster to check: {why}") from None


def _preflight(profile: Profile) -> None:
    """Check the cluster, where there is one to ask; raises `InputError` where something lacks."""
    from pipelines.preflight import Unreachable

    try:
        _check_cluster(profile)
    except Unreachable as why:
        stderr.print(Text(f"Preflight skipped: {why}", style="yellow"), soft_wrap=True)


def _check_cluster(profile: Profile) -> None:
    from pipelines.preflight import check, print_findings

    findings = check(profile)
    print_findings(findings, stdout)
    missing = [finding.what for finding in findings if finding.verdict == "missing"]
    if missing:
        raise InputError(
            f"the cluster lacks {len(missing)} of what profile {profile.name} needs: "
            f"{', '.join(missing)}"
        )
