"""The process that runs a compiled pipeline with Kubeflow's local runner.

python -m pipelines.runner SEED RUN_FOLDER
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path

from kfp import local
from kfp.components import load_component_from_file

from pipelines.metis import LABELS
from toolwise.events import EventWriter
from toolwise.steps import code_digest

PIPELINE = "pipeline.yaml"
"""The compiled pipeline in the run's folder."""

CACHE_HIT = re.compile(r"Task (\S+) cache hit")


def run(seed: int, run_folder: Path) -> None:
    """Run the pipeline; raises `RuntimeError` where a step failed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    logging.getLogger().addHandler(_CacheHits())
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(run_folder / "kfp"),
        enable_caching=True,
        cache_root=str(run_folder / "cache" / code_digest()),
    )
    load_component_from_file(str(run_folder / PIPELINE))(seed=seed)


class _CacheHits(logging.Handler):
    """Turns the local runner's word that it re-uses a task into an event of the step."""

    def emit(self, record: logging.LogRecord) -> None:
        if hit := CACHE_HIT.search(record.getMessage()):
            EventWriter.of_environment(LABELS.get(hit[1], hit[1])).reused()


def _end_with_parent() -> None:
    """End this process group when standard input closes: whoever started the run is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
