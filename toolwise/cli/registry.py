"""Commands of the gate and the model registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from toolwise.cli.application import ENDPOINT, STEP, app, stdout
from toolwise.cli.options import (
    ProfileOption,
    SeedOption,
)
from toolwise.cli.steps import run_by_hand
from toolwise.cli.tracking import name_tracking
from toolwise.errors import InputError

if TYPE_CHECKING:
    from toolwise.promotion.registry import Registry


@app.command(rich_help_panel=STEP)
def promote(
    challenger: Annotated[Path, typer.Option(help="Evaluation of the model.", exists=True)],
    baseline: Annotated[
        Path, typer.Option(help="Evaluation of the model it was trained from.", exists=True)
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint folder; the evaluation has to be of it.", exists=True),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the decision goes; must not exist yet.")
    ] = None,
    champion: Annotated[
        Path | None,
        typer.Option(
            help="Evaluation of the champion on the same items, where its own is of others.",
            exists=True,
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy (YAML); the profile's by default.", exists=True)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Explain the decision, and change nothing.")
    ] = False,
    profile: ProfileOption = "demo",
    seed: SeedOption = None,
) -> None:
    """Hold an evaluation against the policy, and register the model."""
    from toolwise.profile import load_profile
    from toolwise.promotion.judging import judge
    from toolwise.promotion.policy import GatePolicy
    from toolwise.steps.functions import evaluation_run

    thresholds = GatePolicy.load(policy) if policy else load_profile(profile).promote
    if dry_run:
        judged = judge(
            _registry(profile),
            thresholds,
            challenger,
            baseline,
            model=model,
            run_id=evaluation_run(challenger),
            champion=champion,
        )
        stdout.print(Text(judged.decision.explain()), soft_wrap=True)
        return
    if model is None or out is None:
        raise InputError(
            "without --dry-run, --model says what to register and --out where to write"
        )
    inputs = {"model": model, "challenger": challenger, "baseline": baseline, "champion": champion}
    run_by_hand(
        "promote",
        profile,
        seed,
        {"decision": out},
        changes=thresholds.model_dump(),
        # There may be another champion since.
        again=True,
        **{name: path for name, path in inputs.items() if path is not None},
    )


@app.command(rich_help_panel=ENDPOINT)
def rollback(
    reason: Annotated[str, typer.Option(help="Why; it goes into the registry and the log.")],
    profile: ProfileOption = "demo",
) -> None:
    """Make the previous champion the champion again."""
    registry = _registry(profile)
    version = registry.rollback(reason)
    stdout.print(
        f"Version {version} of {registry.name} is the champion again. What serves stays as it is "
        "until that version is deployed.",
        soft_wrap=True,
    )


@app.command(rich_help_panel=ENDPOINT)
def decisions(profile: ProfileOption = "demo") -> None:
    """Print every promotion, rejection and rollback, oldest first."""
    from rich.table import Table

    table = Table("when (UTC)", "what", "version", "champion before", "why", box=None)
    for entry in _registry(profile).decisions():
        when = f"{entry.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, entry.action, entry.version, entry.against or "–", Text(entry.why))
    stdout.print(table)


def _registry(profile: str) -> Registry:
    """The profile's registered model, where its pipeline keeps it."""
    from toolwise.promotion.registry import Registry
    from toolwise.steps.running import experiment_name
    from toolwise.tracking import Connection

    name_tracking(profile)
    return Registry(experiment_name(), Connection())
