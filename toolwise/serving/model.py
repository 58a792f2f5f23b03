"""The agent as a KServe model: an engine, tools, and the loop that ties them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kserve
from kserve.errors import InvalidInput
from pydantic import ValidationError

from toolwise.agent import (
    Batch,
    CallRecord,
    Engine,
    Limits,
    Rollout,
    Sampling,
    TokenRecord,
    Turn,
    run_agent,
)
from toolwise.agent.loop import OnEvent
from toolwise.data import Message, Task
from toolwise.errors import BackendError, InputError
from toolwise.serving.openai_api import (
    ChatRequest,
    Reply,
    RequestError,
    read_conversation,
    validation_error,
)
from toolwise.serving.settings import ServingSettings
from toolwise.serving.telemetry import FAILURES, trace_request
from toolwise.tools import Tool


class AgentModel(kserve.Model):
    """Answers chat requests by running the agent loop over an engine and tools.

    Args:
        settings: name and limits.
        open_engine: makes the engine; called by `load`.
        tools: what the model may call; closed with the server.
    """

    def __init__(
        self,
        settings: ServingSettings,
        open_engine: Callable[[], Engine],
        tools: Sequence[Tool],
    ) -> None:
        super().__init__(settings.name)
        self.settings = settings
        self._open_engine = open_engine
        self._tools = tuple(tools)

    def load(self) -> bool:
        """Make the engine; the model is ready afterwards."""
        self._agent_engine = self._open_engine()
        self.ready = True
        return self.ready

    async def aclose(self) -> None:
        """Stop what the tools have started."""
        for tool in self._tools:
            await tool.aclose()

    async def answer(
        self,
        request: ChatRequest,
        on_event: OnEvent | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Rollout:
        """Run the agent on one request.

        Args:
            request: what was asked.
            on_event: called as each turn and call finishes.
            headers: of the HTTP request; a `traceparent` makes the spans part of the caller's.

        Raises:
            RequestError: the request cannot be served; names the field.
            BackendError: the model or a tool backend failed, or time ran out.
        """
        self._check(request)
        limit = self.settings.request_seconds
        names = [tool.name for tool in self._tools]
        with trace_request(self.name, request.tools_offered, names, headers or {}) as trace:

            def observe(rollout: Rollout, happened: Turn | CallRecord) -> None:
                trace.event(rollout, happened)
                if on_event:
                    on_event(rollout, happened)

            try:
                async with asyncio.timeout(limit):
                    rollout = await self._run(request, observe)
            except TimeoutError:
                FAILURES.inc()
                raise BackendError(f"no answer within {limit} s") from None
            except BackendError:
                FAILURES.inc()
                raise
            trace.answered(rollout, request.tools_offered)
            return rollout

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """KServe's v1 protocol: each instance is a chat request, each prediction its completion."""
        try:
            requests = [ChatRequest.model_validate(instance) for instance in payload["instances"]]
            rollouts = [await self.answer(request, headers=headers) for request in requests]
        except ValidationError as error:
            raise InvalidInput(str(validation_error(error.errors()))) from error
        except InputError as error:
            raise InvalidInput(str(error)) from error
        return {
            "predictions": [
                Reply(self.name).completion(rollout, request.tools_offered)
                for request, rollout in zip(requests, rollouts, strict=True)
            ]
        }

    async def _run(self, request: ChatRequest, observe: OnEvent) -> Rollout:
        asked = await read_conversation(request, self.settings.private_images)
        task = Task("request", "request", "chat", asked.question, (), asked.images)
        calls = request.max_tool_calls
        [rollout] = await run_agent(
            self._agent_engine,
            [task],
            self._tools if request.tools_offered else (),
            sampling=request.sampling(self.settings.max_tokens),
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
        for field in ("max_tool_calls", "max_tokens", "max_completion_tokens"):
            bound = getattr(self.settings, field.replace("completion_", ""))
            if (getattr(request, field) or 0) > bound:
                raise RequestError(f"`{field}` is at most {bound} here", field)


class ThreadedEngine:
    """An engine that computes in this process, moved to a thread of its own.

    The event loop stays free for health checks and tools, and generations run one after another.
    """

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.max_result_chars = engine.max_result_chars
        self.engine = engine
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> ThreadedBatch:
        """Open a batch; the engine sees it with the first turn, in its thread."""
        return ThreadedBatch(self, conversations, tools)


class ThreadedBatch:
    """A batch whose every step happens in the engine's thread."""

    def __init__(
        self,
        owner: ThreadedEngine,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence[dict[str, Any]],
    ) -> None:
        self._thread = owner.thread
        self._start = functools.partial(owner.engine.start, conversations, tools)
        self._batch: Batch | None = None
        self._appended: list[tuple[int, Sequence[Message]]] = []

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        """One assistant turn for each conversation in `indices`."""

        def turn() -> list[Turn]:
            self._batch = self._batch or self._start()
            for index, messages in self._appended:
                self._batch.append(index, messages)
            self._appended.clear()
            return asyncio.run(self._batch.generate(indices, sampling))

        return await asyncio.get_running_loop().run_in_executor(self._thread, turn)

    def append(self, index: int, messages: Sequence[Message]) -> None:
        """Add tool results, to be rendered with the next turn."""
        self._appended.append((index, messages))

    def tokens(self, index: int) -> TokenRecord:
        """Always raises `InputError`: a served engine keeps no records."""
        raise InputError("token records are for training, not for serving")
