"""MLflow: one experiment per profile, a parent run per pipeline run, a nested run per step.

What a step reports goes to a spool on disk and from there to MLflow in the background, in order
and each thing once: training goes on while MLflow is away or slow, and what a dead process has
left behind is sent by the next one. What reads MLflow (the registry, comparisons) asks it
directly, with a bound on retries.
"""

from toolwise.tracking.connection import Connection
from toolwise.tracking.delivery import DIGEST_TAG, FAILURE_TAG, PIPELINE_RUN_TAG
from toolwise.tracking.entries import PipelineRun
from toolwise.tracking.provenance import git_commit
from toolwise.tracking.runs import (
    Run,
    end_pipeline_run,
    step,
)

__all__ = [
    "DIGEST_TAG",
    "FAILURE_TAG",
    "PIPELINE_RUN_TAG",
    "Connection",
    "PipelineRun",
    "Run",
    "end_pipeline_run",
    "git_commit",
    "step",
]
