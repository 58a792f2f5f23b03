"""Where the model's code runs: isolation levels, and the sandboxes that give them."""

from __future__ import annotations

from toolwise.errors import InputError
from toolwise.tools.sandbox.contract import Isolation, Sandbox, SandboxLimits, SandboxSession

__all__ = ["Isolation", "Sandbox", "SandboxLimits", "SandboxSession", "open_sandbox"]


def open_sandbox(
    isolation: str, workers: int = 2, limits: SandboxLimits = SandboxLimits()
) -> Sandbox:
    """A sandbox that isolates at least as strongly as `isolation`.

    Raises:
        InputError: no such level.
        BackendError: this level can't be had here.
    """
    try:
        lowest = Isolation(isolation)
    except ValueError:
        levels = ", ".join(Isolation)
        raise InputError(f"isolation {isolation!r}: there are {levels} (weakest first)") from None
    from toolwise.tools.sandbox.local import LocalSandbox  # imports PIL

    return LocalSandbox(lowest, workers, limits)
