"""The `python` tool: code in a sandboxed session that lasts as long as the trajectory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from toolwise.tools.base import ToolError, ToolResult
from toolwise.tools.sandbox import DEFAULT_LIMITS, SandboxLimits, SandboxSession, open_sandbox

PYTHON_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": (
            "Run Python code; variables last between calls. `image` is the first image of the "
            "task as a PIL image at full size, `images` all of them. What the code prints comes "
            "back as text, and show(img) returns an image. PIL and numpy are installed."
        ),
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "Python code to run"}},
            "required": ["code"],
        },
    },
}


class PythonTool:
    """Runs the model's code in a sandbox.

    It may be used from several event loops, one after another or at once: its calls wait in
    threads, as many as the sandbox runs at a time, and a call's time limit starts with its thread.

    Args:
        isolation: lowest isolation accepted, `none`, `bubblewrap` or `gvisor`.
        workers: sandboxes kept warm on this machine.
        limits: bounds on a session.
        url: a sandbox server to use instead of this machine.

    Raises:
        InputError: no such isolation, or `gvisor` without a server.
        BackendError: this isolation can't be had here.
    """

    name = "python"
    schema = PYTHON_SCHEMA

    def __init__(
        self,
        isolation: str = "bubblewrap",
        workers: int = 2,
        limits: SandboxLimits = DEFAULT_LIMITS,
        url: str | None = None,
    ) -> None:
        self._sandbox = open_sandbox(isolation, workers, limits, url)
        self._threads = ThreadPoolExecutor(
            self._sandbox.concurrency, thread_name_prefix="python-tool"
        )

    async def open(self, images: Sequence[bytes]) -> PythonSession:
        return PythonSession(self._sandbox.open(images), self._threads)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._sandbox.close)
        self._threads.shutdown(wait=False)


class PythonSession:
    """The python of one trajectory."""

    def __init__(self, session: SandboxSession, threads: ThreadPoolExecutor) -> None:
        self._session = session
        self._threads = threads

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        """Run `arguments["code"]`; what goes wrong in it is told in the result."""
        code = arguments.get("code")
        if not isinstance(code, str):
            raise ToolError('python takes {"code": "…"}: `code` must be a string')
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._session.call, code)

    async def close(self) -> None:
        await asyncio.to_thread(self._session.close)  # it waits for a busy supervisor
