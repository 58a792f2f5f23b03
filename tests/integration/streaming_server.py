"""An OpenAI-compatible server that streams, and can do it wrong.

The last user message says how: `say TEXT` streams TEXT in pieces of three characters, `call TEXT`
one python call with that code and, once it has its result, the answer `done`; `wait` streams
`<answer>first`, then the rest once the test lets go; `hang` never answers; `garbage`, `endless`,
`cut`, `late` (an error amid the answer) and `html` go wrong.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import uvicorn
from fastapi.responses import JSONResponse, Response, StreamingResponse


class StreamingServer:
    """Runs in a thread; `gone` is set when a client hangs up on `wait` or `hang`."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections: set[tuple[str, int]] = set()
        self.waiting = threading.Event()
        self.let_go = threading.Event()
        self.gone = threading.Event()
        app = fastapi.FastAPI()
        app.add_api_route("/v1/chat/completions", self._complete, methods=["POST"])
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> StreamingServer:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    @property
    def port(self) -> int:
        return self._server.servers[0].sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _complete(self, request: fastapi.Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        assert request.client is not None
        self.connections.add((request.client.host, request.client.port))
        content = [m for m in body["messages"] if m["role"] == "user"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        word, _, rest = text.partition(" ")
        if word == "html":
            return Response("<h1>It works!</h1>", media_type="text/html")
        if not body.get("stream"):
            if word == "hang":
                await self._wait_for(request)
            return JSONResponse(whole(rest))
        answered = body["messages"][-1]["role"] == "tool"
        return StreamingResponse(self._pieces(word, rest, answered), media_type="text/event-stream")

    async def _pieces(self, word: str, rest: str, answered: bool) -> AsyncIterator[bytes]:
        if word == "hang":
            await self._wait()
        if word == "garbage":
            yield b"data: {not json\n\n"
            return
        if word == "endless":
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        if word in ("cut", "late"):
            yield chunk({"content": "<answer>4"})
            if word == "late":
                yield b'data: {"error": {"message": "out of memory"}}\n\n'
            return
        if word == "wait":
            yield chunk({"content": "<answer>first"})
            await self._wait()
            rest = " second</answer>"
        if word == "call" and not answered:
            arguments = json.dumps({"code": rest})
            yield chunk({"tool_calls": [piece("call-1", "python", "")]})
            for start in range(0, len(arguments), 5):
                yield chunk({"tool_calls": [piece(None, None, arguments[start : start + 5])]})
            yield chunk({}, "tool_calls")
        else:
            text = "<answer>done</answer>" if word == "call" else rest
            for start in range(0, len(text), 3):
                yield chunk({"content": text[start : start + 3]})
            yield chunk({}, "stop")
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode()
        yield b"data: [DONE]\n\n"

    async def _wait_for(self, request: fastapi.Request) -> None:
        """Wait, and give up when the client does: only a stream is cancelled by itself."""
        waiting = asyncio.ensure_future(self._wait())
        leaving = asyncio.ensure_future(request.receive())
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            raise fastapi.HTTPException(499)
        leaving.cancel()

    async def _wait(self) -> None:
        self.waiting.set()
        try:
            await asyncio.to_thread(self.let_go.wait)
        except asyncio.CancelledError:
            self.gone.set()
            raise


def whole(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def piece(call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": 0, "id": call_id, "type": "function", "function": function}
