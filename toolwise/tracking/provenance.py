"""Who ran which code."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def provenance() -> dict[str, str]:
    """The tags MLflow's UI reads for user, source and git commit."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": " ".join(sys.argv)[:500]}
    with suppress(KeyError, OSError):
        tags["mlflow.user"] = getpass.getuser()
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def git_commit() -> str:
    """The commit this code was built from (`TOOLWISE_GIT_COMMIT`, or the checkout's), or empty."""
    if commit := os.environ.get("TOOLWISE_GIT_COMMIT"):
        return commit
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""
