"""The steps of a run, as the pipeline and the command line start them."""

from toolwise.steps.functions import (
    STEPS,
    finish_run,
    headline_metrics,
    promoted,
    run_answers,
    run_promotion,
    run_step,
)
from toolwise.steps.running import (
    RUN_VARIABLE,
    WORK_VARIABLE,
    FinishedStep,
    Step,
    code_digest,
    perform,
)

__all__ = [
    "RUN_VARIABLE",
    "STEPS",
    "WORK_VARIABLE",
    "FinishedStep",
    "Step",
    "code_digest",
    "finish_run",
    "headline_metrics",
    "perform",
    "promoted",
    "run_answers",
    "run_promotion",
    "run_step",
]
