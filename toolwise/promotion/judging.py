"""A challenger held against the champion in the registry; decides, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from toolwise.errors import InputError
from toolwise.promotion.evidence import Evaluation
from toolwise.promotion.gate import Decision, decide_on
from toolwise.promotion.policy import GatePolicy
from toolwise.promotion.registry import RegisteredVersion, Registry
from toolwise.promotion.succession import Standing
from toolwise.storage import content_digest


class Judged(NamedTuple):
    """A decision, and who was champion when it was made: what `Registry.record` asks for."""

    decision: Decision
    standing: Standing


def judge(
    registry: Registry,
    policy: GatePolicy,
    challenger: Path,
    baseline: Path,
    *,
    model: Path | None = None,
    run_id: str | None = None,
    champion: Path | None = None,
) -> Judged:
    """Hold an evaluation against the policy and the champion.

    Args:
        registry: where the champion is.
        policy: the thresholds.
        challenger: evaluation of the checkpoint that wants to be promoted.
        baseline: evaluation of the stage it was trained from.
        model: that checkpoint, where there is one here to compare with.
        run_id: the MLflow run of the challenger's evaluation. Where that is the champion's own, as
            after a kill, the one before it is what it is compared with.
        champion: evaluation of the champion on the challenger's items, where its own is of others.

    Raises:
        InputError: an evaluation cannot be read, or it is of another checkpoint than `model`, or
            `champion` of another than the champion's, or `baseline` of the challenger itself.
        BackendError: MLflow cannot be reached, or the champion's scores are gone.
    """
    measured = Evaluation.read(challenger)
    if model is not None:
        _refuse_other_checkpoint(measured, challenger, model)
    before = Evaluation.read(baseline)
    _refuse_itself(measured, before, baseline)
    standing = registry.seen()
    number, reference = standing.champion, None
    if number is not None:
        reference = registry.version(number)
        if reference.run_id == run_id:
            number = standing.previous
            reference = registry.version(number) if number is not None else None
    evaluation = reference.evaluation if reference else None
    if champion is not None:
        evaluation = _measured_again(champion, reference, registry.name)
    decision = decide_on(
        policy,
        measured,
        evaluation,
        before,
        version=number,
    )
    return Judged(decision, standing)


def _refuse_other_checkpoint(evaluation: Evaluation, folder: Path, model: Path) -> None:
    """Refuse scores of another checkpoint than `model`.

    Which one a server had loaded cannot be known.
    """
    if evaluation.model is not None:
        return
    own = content_digest(model)
    if evaluation.checkpoint != own:
        raise InputError(
            f"{folder}: an evaluation of {_named(evaluation.checkpoint)}, and {model} is {own}; "
            "evaluate that one, or name the checkpoint that was evaluated"
        )


def _refuse_itself(challenger: Evaluation, baseline: Evaluation, folder: Path) -> None:
    """Refuse to compare a checkpoint with itself: no accuracy could be lost."""
    if challenger.checkpoint is not None and challenger.checkpoint == baseline.checkpoint:
        raise InputError(
            f"{folder}: an evaluation of {_named(baseline.checkpoint)}, which is the challenger; "
            "the baseline is the stage that it was trained from"
        )


def _measured_again(folder: Path, champion: RegisteredVersion | None, model: str) -> Evaluation:
    """The evaluation in `folder`, if the checkpoint it is of is the champion."""
    evaluation = Evaluation.read(folder)
    if champion is None:
        raise InputError(
            f"{folder}: registered model {model!r} has no champion that this could be an "
            "evaluation of; leave --champion out"
        )
    own = champion.evaluation.checkpoint
    if own is None or evaluation.checkpoint != own:
        raise InputError(
            f"{folder}: an evaluation of {_named(evaluation.checkpoint)}, and the champion, "
            f"version {champion.version} of {model!r}, is {_named(own)}; evaluate the checkpoint "
            f"at {champion.source}"
        )
    return evaluation


def _named(checkpoint: str | None) -> str:
    return f"the checkpoint {checkpoint}" if checkpoint else "a checkpoint it does not name"
