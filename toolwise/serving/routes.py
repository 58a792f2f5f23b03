"""The HTTP side: OpenAI's endpoints beside KServe's own, and OpenAI's errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from toolwise.agent import CallRecord, Rollout, Turn
from toolwise.errors import BackendError, InputError
from toolwise.serving.model import AgentModel
from toolwise.serving.openai_api import (
    MAX_BODY_BYTES,
    ChatRequest,
    Reply,
    RequestError,
    call_field,
    error_body,
    server_sent,
    validation_error,
)

_log = logging.getLogger("toolwise.serving")

T = TypeVar("T")


class OpenAIRoute(APIRoute):
    """A route whose every failure is an OpenAI error object."""

    def get_route_handler(
        self,
    ) -> Callable[[fastapi.Request], Coroutine[Any, Any, fastapi.Response]]:
        handle = super().get_route_handler()

        async def guarded(request: fastapi.Request) -> fastapi.Response:
            try:
                _check_size(request)
                return await handle(request)
            except Exception as error:
                status, body = describe_error(error)
                return JSONResponse(body, status)

        return guarded


def describe_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI error object of a failed request."""
    match error:
        case RequestValidationError():
            return describe_error(validation_error(error.errors()))
        case RequestError():
            body = error_body(str(error), "invalid_request_error", error.param, error.code)
            return error.status, body
        case InputError():
            return 400, error_body(str(error), "invalid_request_error")
        case BackendError():
            _log.error("backend failure: %s", error)
            return 503, error_body(str(error), "server_error", code="backend_unavailable")
        case HTTPException():
            return error.status_code, error_body(str(error.detail), "invalid_request_error")
        case _:
            _log.error("unexpected failure", exc_info=error)
            return 500, error_body("internal error; the server's log has it", "server_error")


def openai_router(model: AgentModel) -> fastapi.APIRouter:
    """`/openai/v1/…` and `/v1/…` for one model; the tools stop with the server."""

    @asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        await model.aclose()

    async def chat_completions(body: ChatRequest, request: fastapi.Request) -> fastapi.Response:
        if body.stream:
            return await _stream(model, body, request)
        rollout = await _unless_gone(request, model.answer(body, headers=request.headers))
        return JSONResponse(Reply(model.name).completion(rollout, body.tools_offered))

    async def list_models() -> fastapi.Response:
        # `models` is what KServe's own /v1/models says.
        entry = {"id": model.name, "object": "model", "created": 0, "owned_by": "toolwise"}
        return JSONResponse({"object": "list", "data": [entry], "models": [model.name]})

    router = fastapi.APIRouter(route_class=OpenAIRoute, lifespan=lifespan)
    for prefix in ("/openai/v1", "/v1"):
        router.add_api_route(
            f"{prefix}/chat/completions", chat_completions, methods=["POST"], response_model=None
        )
        router.add_api_route(f"{prefix}/models", list_models, methods=["GET"])
    return router


async def _stream(
    model: AgentModel, body: ChatRequest, request: fastapi.Request
) -> fastapi.Response:
    """Each tool call as it ends, then the answer.

    The response starts with the first turn, so that a request that fails before still gets its
    HTTP status.
    """
    reply = Reply(model.name)
    events: asyncio.Queue[Turn | CallRecord | None] = asyncio.Queue()

    def observe(_: Rollout, happened: Turn | CallRecord) -> None:
        events.put_nowait(happened)

    answering = asyncio.ensure_future(model.answer(body, observe, request.headers))
    answering.add_done_callback(lambda _: events.put_nowait(None))
    try:
        first = await _unless_gone(request, events.get())
    except BaseException:
        answering.cancel()
        raise
    if first is None and answering.exception():
        await answering

    async def chunks() -> AsyncIterator[str]:
        try:
            yield server_sent(reply.chunk({"role": "assistant", "content": ""}))
            event = first
            while event is not None:
                if isinstance(event, CallRecord):
                    yield server_sent(reply.chunk({}, toolwise={"call": call_field(event)}))
                event = await events.get()
            rollout = await answering
            include_usage = body.stream_options.include_usage
            for chunk in reply.last_chunks(rollout, body.tools_offered, include_usage):
                yield server_sent(chunk)
        except Exception as error:
            yield server_sent(describe_error(error)[1])
        else:
            yield server_sent("[DONE]")
        finally:
            answering.cancel()

    return StreamingResponse(chunks(), media_type="text/event-stream")


async def _unless_gone(request: fastapi.Request, work: Coroutine[Any, Any, T]) -> T:
    """`work`, cancelled when the client hangs up: nobody waits for it any more."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "the client closed the connection")
        return await working
    finally:
        working.cancel()
        gone.cancel()


def _check_size(request: fastapi.Request) -> None:
    """Refuse a body before it is read into memory."""
    if request.method != "POST":
        return
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise RequestError("the request needs a content-length", status=411)
    if int(length) > MAX_BODY_BYTES:
        raise RequestError(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", status=413)
