"""Where the model's code runs: isolation levels, and the sandboxes that give them."""

from __future__ import annotations

import os

from toolwise.errors import InputError
from toolwise.tools.sandbox.contract import (
    DEFAULT_LIMITS,
    Isolation,
    Sandbox,
    SandboxLimits,
    SandboxSession,
)

SANDBOX_VARIABLE = "TOOLWISE_SANDBOX"
"""Environment variable with the address of the sandbox server that a pod uses."""

__all__ = [
    "DEFAULT_LIMITS",
    "SANDBOX_VARIABLE",
    "Isolation",
    "Sandbox",
    "SandboxLimits",
    "SandboxSession",
    "open_sandbox",
]


def open_sandbox(
    isolation: str,
    workers: int = 2,
    limits: SandboxLimits = DEFAULT_LIMITS,
    url: str | None = None,
) -> Sandbox:
    """A sandbox that isolates at least as strongly as `isolation`.

    Args:
        isolation: `none`, `bubblewrap` or `gvisor`.
        workers: sandboxes kept warm on this machine.
        limits: bounds on a session on this machine; a server has its own.
        url: a sandbox server (`toolwise.tools.server`) to use instead of this machine; by default
            the one that `TOOLWISE_SANDBOX` names, if any.

    Raises:
        InputError: no such level, or `gvisor` without a server.
        BackendError: this level can't be had.
    """
    try:
        lowest = Isolation(isolation)
    except ValueError:
        levels = ", ".join(Isolation)
        raise InputError(f"isolation {isolation!r}: there are {levels} (weakest first)") from None
    url = url or os.environ.get(SANDBOX_VARIABLE)
    if url:
        from toolwise.tools.sandbox.remote import RemoteSandbox

        return RemoteSandbox(url, lowest)
    if lowest is Isolation.GVISOR:
        raise InputError(
            "isolation 'gvisor' needs the address of a sandbox server, in the profile's "
            f"kubeflow.sandbox or in {SANDBOX_VARIABLE}"
        )
    from toolwise.tools.sandbox.local import LocalSandbox  # imports PIL

    return LocalSandbox(lowest, workers, limits)
