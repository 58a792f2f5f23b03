"""Where the commands find MLflow."""

from __future__ import annotations

import os
from pathlib import Path


def name_tracking(profile: str) -> None:
    """Let the environment name MLflow and the experiment, as the profile's pipeline does."""
    from pipelines.local import tracking_uri
    from toolwise.profile import load_profile

    name = load_profile(profile).name
    os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri(Path("runs") / name))
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", name)
