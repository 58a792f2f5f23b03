"""A sandbox server: python sessions over HTTP, for the gVisor pod of a cluster.

`python -m toolwise.tools.server --port 8090`; `toolwise.tools.sandbox.remote` is its client.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from toolwise.errors import BackendError, InputError
from toolwise.tools.python import PythonSession, PythonTool
from toolwise.tools.sandbox import Isolation
from toolwise.tools.sandbox.remote import CallResult, Code, Health, NewSession, SessionId

MAX_SESSIONS = 1024
IDLE_SECONDS = 900.0
"""A session nobody has called for so long was left behind by its client."""


def create_app(isolation: str = "bubblewrap", workers: int = 2) -> FastAPI:
    """The server.

    Args:
        isolation: what keeps a session from this server and from other sessions.
        workers: sandboxes kept warm.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.sessions = Sessions(PythonTool(isolation, workers))
        yield
        await app.state.sessions.aclose()

    app = FastAPI(title="Toolwise sandbox", lifespan=lifespan)
    level = reported_isolation(Isolation(isolation), kernel_log())

    @app.exception_handler(BackendError)
    async def unavailable(_: Request, error: BackendError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    @app.exception_handler(InputError)
    async def wrong_input(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.get("/health")
    async def health() -> Health:
        return Health(isolation=level, sessions=len(app.state.sessions))

    @app.post("/sessions", status_code=201)
    async def create(body: NewSession) -> SessionId:
        return SessionId(id=await app.state.sessions.create(body.images))

    @app.post("/sessions/{name}/calls")
    async def call(name: str, body: Code) -> CallResult:
        result = await app.state.sessions.get(name).call({"code": body.code})
        images = [base64.b64encode(image).decode() for image in result.images]
        return CallResult(
            text=result.text, images=images, is_error=result.is_error, seconds=result.seconds
        )

    @app.delete("/sessions/{name}", status_code=204)
    async def delete(name: str) -> None:
        await app.state.sessions.close(name)

    return app


class Sessions:
    """Open sessions by name."""

    def __init__(self, tool: PythonTool) -> None:
        self._tool = tool
        self._sessions: dict[str, PythonSession] = {}
        self._used: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    async def create(self, images: list[str]) -> str:
        await self._close_idle()
        if len(self._sessions) >= MAX_SESSIONS:
            raise BackendError(f"all {MAX_SESSIONS} sessions of the sandbox server are taken")
        try:
            decoded = [base64.b64decode(image, validate=True) for image in images]
        except ValueError as error:
            raise InputError(f"images must be base64: {error}") from None
        name = secrets.token_urlsafe(16)
        self._sessions[name] = await self._tool.open(decoded)
        self._used[name] = time.monotonic()
        return name

    def get(self, name: str) -> PythonSession:
        if name not in self._sessions:
            raise HTTPException(404, "no such session: it was closed, or lost in a restart")
        self._used[name] = time.monotonic()
        return self._sessions[name]

    async def close(self, name: str) -> None:
        self._used.pop(name, None)
        session = self._sessions.pop(name, None)
        if session is not None:
            await session.close()

    async def aclose(self) -> None:
        for name in list(self._sessions):
            await self.close(name)
        await self._tool.aclose()

    async def _close_idle(self) -> None:
        oldest = time.monotonic() - IDLE_SECONDS
        for name in [name for name, used in self._used.items() if used < oldest]:
            await self.close(name)


def reported_isolation(between_sessions: Isolation, log: str) -> Isolation:
    """How far this server keeps code from the host: `gvisor` where the kernel's log is gVisor's."""
    return Isolation.GVISOR if "Starting gVisor" in log else between_sessions


def kernel_log() -> str:
    """The kernel's messages, as far as this process may read them; gVisor's say its name."""
    buffer = ctypes.create_string_buffer(1 << 16)
    read_all = 3
    count = ctypes.CDLL(None).klogctl(read_all, buffer, len(buffer))
    return buffer.raw[: max(count, 0)].decode(errors="replace")


def parser() -> argparse.ArgumentParser:
    """The server's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--isolation", choices=["none", "bubblewrap"], default="bubblewrap")
    parser.add_argument("--workers", type=int, default=2)
    return parser


def main() -> None:
    """Serve until SIGTERM; requests under way are finished first."""
    import uvicorn

    arguments = parser().parse_args()
    app = create_app(arguments.isolation, arguments.workers)
    uvicorn.run(app, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
