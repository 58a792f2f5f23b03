"""The agent as a KServe model: an engine, tools, and the loop that ties them."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import kserve
from kserve.errors import InvalidInput
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from toolwise.agent import CallRecord, Engine, Limits, Rollout, Turn, run_agent
from toolwise.data import Task
from toolwise.errors import BackendError, ToolwiseError
from toolwise.serving.failures import describe_error
from toolwise.serving.guard import ARRIVAL, MAX_INSTANCES, Arrival
from toolwise.serving.openai_api import (
    ChatRequest,
    Conversation,
    OutOfTime,
    Reply,
    RequestError,
    read_conversation,
)
from toolwise.serving.settings import ServingSettings
from toolwise.serving.streaming import ListenedEngine, Listener
from toolwise.serving.telemetry import FAILURES, RequestTrace, trace_request
from toolwise.serving.trace_sample import TraceSample
from toolwise.tools import Tool

if TYPE_CHECKING:
    from toolwise.tracking.served import ServedTraces


class ServedEngine(Engine, Protocol):
    """An engine that holds something while it is served."""

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Hold it (connections, a thread) until the block ends."""
        ...


class AgentModel(kserve.Model):
    """Answers chat requests by running the agent loop over an engine and tools.

    Args:
        settings: name and limits.
        open_engine: makes the engine; called by `load`.
        tools: what the model may call; closed with the server.
        traces: where a sample of the requests is traced; None traces none.
    """

    def __init__(
        self,
        settings: ServingSettings,
        open_engine: Callable[[], ServedEngine],
        tools: Sequence[Tool],
        traces: ServedTraces | None = None,
    ) -> None:
        super().__init__(settings.name)
        self.settings = settings
        self._open_engine = open_engine
        self._tools = tuple(tools)
        self._traces = traces

    def load(self) -> bool:
        """Make the engine; the model is ready afterwards."""
        self._agent_engine = self._open_engine()
        self.ready = True
        return self.ready

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold what answering needs (connections to a server, the tools) until the block ends."""
        try:
            async with self._agent_engine.connected():
                yield
        finally:
            for tool in self._tools:
                await tool.aclose()
            if self._traces:
                await asyncio.to_thread(self._traces.close)

    async def answer(
        self,
        request: ChatRequest,
        arrival: Arrival,
        listener: Listener | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[Rollout]:
        """Run the agent on one request.

        Args:
            request: what was asked.
            arrival: whose request it is, and when it must be answered.
            listener: told what happens meanwhile.
            headers: of the HTTP request; a `traceparent` makes the spans part of the client's.

        Returns:
            One rollout for each of the `n` choices.

        Raises:
            RequestError: the request cannot be served; names the field.
            BackendError: the model or a tool backend failed, or time ran out.
            OSError: the machine did (a full disk, no more descriptors).
        """
        self._check(request)
        seconds = self.settings.request_seconds
        names = [tool.name for tool in self._tools]
        with trace_request(
            self.name, request.tools_offered, names, headers or {}, arrival.caller
        ) as trace:
            sample = TraceSample(self._traces, arrival.id, len(request.messages))
            limit = asyncio.timeout(arrival.deadline - time.monotonic())
            try:
                async with limit:
                    rollouts = await self._run(request, trace, sample, listener)
            except (BackendError, OSError) as error:
                # A tool may run out of a time of its own, which is not the request's.
                late = isinstance(error, TimeoutError) and limit.expired()
                failed = OutOfTime(f"no answer within {seconds} s") if late else error
                FAILURES.inc()
                sample.failed(str(failed))
                raise failed from error.__cause__
            for rollout in rollouts:
                trace.answered(rollout, request.tools_offered)
                sample.answered(rollout)
            return rollouts

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """KServe's v1 protocol: each instance is a chat request, each prediction its completion.

        All of them have to be answered by the one deadline of the HTTP request; each counts as a
        request of its key's.
        """
        instances = payload.get("instances") if isinstance(payload, Mapping) else None
        if not isinstance(instances, list):
            raise InvalidInput("ask in KServe's v1 protocol: `instances`, a chat request each")
        if len(instances) > MAX_INSTANCES:
            raise InvalidInput(f"`instances` are at most {MAX_INSTANCES}")
        whole = ARRIVAL.get()
        arrivals = [replace(whole, id=f"{whole.id}-{number}") for number in range(len(instances))]
        try:
            whole.charge(max(0, len(instances) - 1))
            requests = [ChatRequest.model_validate(instance) for instance in instances]
            answers = [
                await self.answer(request, arrival, headers=headers)
                for request, arrival in zip(requests, arrivals, strict=True)
            ]
        except (ValidationError, ToolwiseError, OSError) as error:
            failed = describe_error(error)
            message = failed.body["error"]["message"]
            if failed.status == HTTPStatus.BAD_REQUEST:
                raise InvalidInput(message) from error
            raise HTTPException(failed.status, message, dict(failed.headers)) from error
        return {
            "predictions": [
                Reply(self.name, arrival.id).completion(rollouts, request.tools_offered)
                for request, arrival, rollouts in zip(requests, arrivals, answers, strict=True)
            ]
        }

    async def _run(
        self,
        request: ChatRequest,
        trace: RequestTrace,
        sample: TraceSample,
        listener: Listener | None,
    ) -> list[Rollout]:
        """Every choice is an agent of its own, which waits for no other."""
        asked = await read_conversation(request, self.settings.private_images)
        try:
            async with asyncio.TaskGroup() as group:
                choices = [
                    group.create_task(self._choice(number, request, asked, trace, sample, listener))
                    for number in range(request.n)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [choice.result() for choice in choices]

    async def _choice(
        self,
        number: int,
        request: ChatRequest,
        asked: Conversation,
        trace: RequestTrace,
        sample: TraceSample,
        listener: Listener | None,
    ) -> Rollout:
        def observe(rollout: Rollout, happened: Turn | CallRecord) -> None:
            trace.event(rollout, happened)
            sample.progressed(rollout)
            if listener:
                listener(number, happened)

        engine: Engine = self._agent_engine
        if listener:
            engine = ListenedEngine(engine, functools.partial(listener, number))
        task = Task("request", "request", "chat", asked.question, (), asked.images)
        calls = request.max_tool_calls
        [rollout] = await run_agent(
            engine,
            [task],
            self._tools if request.tools_offered else (),
            sampling=request.sampling(self.settings.max_tokens, number),
            limits=Limits(
                self.settings.max_turns, self.settings.max_tool_calls if calls is None else calls
            ),
            history=[asked.messages],
            on_event=observe,
        )
        return rollout

    def _check(self, request: ChatRequest) -> None:
        """What only this endpoint knows: its name and its limits."""
        if request.model != self.name:
            raise RequestError(
                f"there is no model {request.model!r} here; there is {self.name!r}",
                "model",
                404,
                "model_not_found",
            )
        characters = sum(message.characters for message in request.messages)
        if characters > self.settings.max_characters:
            raise RequestError(
                f"the messages have {characters} characters of text; "
                f"at most {self.settings.max_characters} are read here",
                "messages",
            )
        for field in ("max_tool_calls", "max_tokens", "max_completion_tokens"):
            bound = getattr(self.settings, field.replace("completion_", ""))
            if (getattr(request, field) or 0) > bound:
                raise RequestError(f"`{field}` is at most {bound} here", field)
