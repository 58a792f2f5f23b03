"""The same training on one process, on several, or on several machines."""

from toolwise.training.launcher.processes import launch

__all__ = ["launch"]
