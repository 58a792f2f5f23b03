"""The HTTP side: OpenAI's endpoints and the page beside KServe's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import fastapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from toolwise.json_encoding import encode_json
from toolwise.serving.failures import describe_error
from toolwise.serving.guard import ARRIVAL, Arrival
from toolwise.serving.model import AgentModel
from toolwise.serving.openai_api import ChatRequest, Reply
from toolwise.serving.page import page_router
from toolwise.serving.streaming import AnswerStream

_LARGE_BODY = 2**16
"""Bytes worth a thread: reading them would hold up every other request."""
_READING = ThreadPoolExecutor(1, "reading")
"""One at a time: reading is Python's own work, in which threads only hold each other up."""


def openai_router(model: AgentModel) -> fastapi.APIRouter:
    """The list of models and the page beside KServe's routes; the model runs while they do."""

    @asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        async with model.running():
            yield

    async def list_models() -> Response:
        # `models` is what KServe's own /v1/models says.
        entry = {"id": model.name, "object": "model", "created": 0, "owned_by": "toolwise"}
        return _json({"object": "list", "data": [entry], "models": [model.name]})

    router = fastapi.APIRouter(lifespan=lifespan)
    for prefix in ("/openai/v1", "/v1"):
        router.add_api_route(f"{prefix}/models", list_models, methods=["GET"])
    router.include_router(page_router())
    return router


def chat_application(model: AgentModel) -> ASGIApp:
    """Chat completions for requests that were let in.

    An application of its own: KServe's measures and logs each request three times over, which
    takes longer than everything here.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        response = await _answer(model, Request(scope, receive), ARRIVAL.get())
        await response(scope, receive, send)

    return application


async def openai_error(request: Request, error: Exception) -> Response:
    """A failure of KServe's own routes, or a path that there is not, as OpenAI's error object."""
    assert isinstance(error, HTTPException)
    failed = describe_error(error)
    return _json(failed.body, failed.status, dict(error.headers or {}))


async def _answer(model: AgentModel, request: Request, arrival: Arrival) -> Response:
    try:
        reply = Reply(model.name, arrival.id)
        asked = await _read(await request.body())
        if asked.stream:
            return await _stream(model, asked, request, arrival, reply)
        rollouts = await model.answer(asked, arrival, headers=request.headers)
        return _json(reply.completion(rollouts, asked.tools_offered))
    except Exception as error:
        failed = describe_error(error)
        return _json(failed.body, failed.status, dict(failed.headers))


async def _read(body: bytes) -> ChatRequest:
    """The request; raises pydantic's `ValidationError` where it is none."""
    if len(body) > _LARGE_BODY:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_READING, ChatRequest.model_validate_json, body)
    return ChatRequest.model_validate_json(body)


async def _stream(
    model: AgentModel, asked: ChatRequest, request: Request, arrival: Arrival, reply: Reply
) -> Response:
    stream = AnswerStream(
        asked, reply, lambda listener: model.answer(asked, arrival, listener, request.headers)
    )
    await stream.begin()
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream.chunks(), headers=headers, media_type="text/event-stream")


def _json(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(encode_json(body), status, headers, "application/json")
