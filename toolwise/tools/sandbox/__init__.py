"""Where the model's code runs: isolation levels, and the sandboxes that give them."""

from __future__ import annotations

from toolwise.errors import InputError
from toolwise.tools.sandbox.contract import (
    DEFAULT_LIMITS,
    Isolation,
    Sandbox,
    SandboxLimits,
    SandboxSession,
)

__all__ = [
    "DEFAULT_LIMITS",
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
        url: a sandbox server (`toolwise.tools.server`) to use instead of this machine.

    Raises:
        InputError: no such level, or `gvisor` without a server.
        BackendError: this level can't be had.
    """
    try:
        lowest = Isolation(isolation)
    except ValueError:
        levels = ", ".join(Isolation)
        raise InputError(f"isolation {isolation!r}: there are {levels} (weakest first)") from None
    if url is not None:
        from toolwise.tools.sandbox.remote import RemoteSandbox

        return RemoteSandbox(url, lowest)
    if lowest is Isolation.GVISOR:
        raise InputError("isolation 'gvisor' needs the address of a sandbox server (sandbox_url)")
    from toolwise.tools.sandbox.local import LocalSandbox  # imports PIL

    return LocalSandbox(lowest, workers, limits)
