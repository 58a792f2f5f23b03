"""The command line: `toolwise --help`.

It is where everything is put together: the only part of `toolwise` that imports `pipelines`. A
module for each group of commands; they import what they need when they run, so that help and
completion stay quick.
"""

# In the order in which help has them.
from toolwise.cli import pipeline, submission, endpoint, steps, registry  # isort: skip
from toolwise.cli.application import app

__all__ = ["app", "endpoint", "pipeline", "registry", "steps", "submission"]
