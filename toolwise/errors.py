"""The errors a person reads. Every one says what was wrong, where, and what to do."""


class ToolwiseError(Exception):
    """Base of every error that ends a command; the CLI prints it without a traceback."""

    exit_status = 1
    """What the command exits with."""


class InputError(ToolwiseError):
    """A file, row, field, flag or profile the user gave is wrong."""


class BackendError(ToolwiseError):
    """Infrastructure is at fault (sandbox, search, judge, S3, MLflow): stops the step.

    It is never scored as the model's failure. Tool mistakes the *model* makes are
    :class:`toolwise.tools.ToolError` instead, which the model gets to read.
    """
