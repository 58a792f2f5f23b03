"""OpenAI's chat completions as this server speaks them: requests, replies, errors, SSE."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from toolwise.agent import CallRecord, Rollout, Sampling
from toolwise.data import Message
from toolwise.errors import BackendError, InputError
from toolwise.json_encoding import encode_json
from toolwise.serving.answers import answer_text
from toolwise.serving.images import PixelBudget, read_image

MAX_IMAGES = 16
MAX_CHOICES = 8
MAX_ITEMS = 1000
"""Messages of a request, and parts and tool calls of a message."""


class RequestError(InputError):
    """A request that cannot be served, in OpenAI's terms.

    Args:
        message: what is wrong and what to do.
        param: the field at fault, as `messages[0].content[1].image_url.url`.
        status: HTTP status.
        code: machine-readable reason.
        retry_after: seconds after which the same request may do.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.retry_after = retry_after


_Bounded = Field(max_length=MAX_ITEMS, fail_fast=True)
"""A list that is not read beyond its first fault: a body of a few MiB can hold a million."""


class OutOfTime(BackendError):
    """A request was not answered within its time; to ask again would take as long again."""


class _Strict(BaseModel):
    """Unknown fields and other types are errors; null means not given, as with OpenAI."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = cls.model_fields
        given = {name: data[name] for name in known if data.get(name) is not None}
        # One unknown field is enough to refuse them all.
        odd = (name for name in data if name not in known and data[name] is not None)
        return given | {name: data[name] for name in islice(odd, 1)}


class ImageUrl(_Strict):
    """Where an image is; the model sees it as its own processor scales it (`detail` is `auto`)."""

    url: str
    detail: Literal["auto"] = "auto"


class Part(_Strict):
    """One piece of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _carries_its_type(self) -> Part:
        given = {name for name in ("text", "image_url") if getattr(self, name) is not None}
        if given != {self.type}:
            raise ValueError(f"a part of type {self.type} has the field {self.type} and no other")
        return self


class RequestedFunction(_Strict):
    """Name and arguments (JSON text) of an earlier call."""

    name: str
    arguments: str


class RequestedCall(_Strict):
    """A tool call in an earlier assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: RequestedFunction


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(_Strict):
    """One message of the conversation so far."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[list[Part], _Bounded, BeforeValidator(_as_parts)] = []
    tool_calls: Annotated[list[RequestedCall], _Bounded] = []
    tool_call_id: str | None = None

    @property
    def characters(self) -> int:
        """Of its text and its calls."""
        functions = [call.function for call in self.tool_calls]
        return sum(len(part.text or "") for part in self.content) + sum(
            len(function.name) + len(function.arguments) for function in functions
        )


class StreamOptions(_Strict):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of `POST /chat/completions`.

    Beyond OpenAI's fields: `tools` and `tool_choice` say whether the server's own tools may be
    used, and `max_tool_calls` how often.
    """

    model: str
    messages: Annotated[list[ChatMessage], _Bounded] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    ] = Field(default_factory=list, max_length=4)
    tools: Literal["auto", "none"] = "auto"
    tool_choice: Literal["auto", "none"] = "auto"
    max_tool_calls: int | None = Field(None, ge=0)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    user: str | None = None

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, options: StreamOptions, given: ValidationInfo) -> StreamOptions:
        if not given.data.get("stream"):
            raise ValueError("it is only for `stream: true`")
        return options

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, limit: int, given: ValidationInfo) -> int:
        if given.data.get("max_tokens") is not None:
            raise ValueError("it is the new name of `max_tokens`; give one of the two")
        return limit

    @property
    def tools_offered(self) -> bool:
        """Whether the model may call tools at all."""
        return self.tools == "auto" and self.tool_choice == "auto"

    def sampling(self, max_tokens: int, choice: int = 0) -> Sampling:
        """Decoding settings of one choice; choice i is sampled with `seed + i`.

        Args:
            max_tokens: limit on tokens per turn where the request asks for none.
            choice: which of the `n`.
        """
        asked = self.max_completion_tokens or self.max_tokens
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=asked or max_tokens,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            stop=tuple(self.stop),
        )


@dataclass(frozen=True, slots=True)
class Conversation:
    """The request's messages as the agent takes them, and the images of its user turns."""

    messages: list[Message]
    images: tuple[bytes, ...]
    question: str


async def read_conversation(request: ChatRequest, allow_private: bool) -> Conversation:
    """Fetch and check what the messages carry.

    Raises:
        RequestError: naming the field.
    """
    if request.messages[-1].role not in ("user", "tool"):
        raise RequestError("the last message must be from `user` or `tool`", "messages")
    fetched = await _read_images(request, allow_private)
    messages = [
        _read_message(message, index, fetched) for index, message in enumerate(request.messages)
    ]
    images = [
        part["image"]
        for message in messages
        if message["role"] == "user"
        for part in message["content"]
        if part["type"] == "image"
    ]
    asked = [m for m in request.messages if m.role == "user"]
    question = " ".join(part.text or "" for part in asked[-1].content) if asked else ""
    return Conversation(messages, tuple(images), question.strip())


async def _read_images(request: ChatRequest, allow_private: bool) -> dict[str, bytes]:
    """The images of all messages by the field that says where each is, read at once."""
    places = {
        f"messages[{index}].content[{number}].image_url.url": (message.role, part.image_url.url)
        for index, message in enumerate(request.messages)
        for number, part in enumerate(message.content)
        if part.image_url is not None
    }
    if len(places) > MAX_IMAGES:
        raise RequestError(f"the messages hold more than {MAX_IMAGES} images", "messages")
    for field, (role, _) in places.items():
        if role not in ("user", "tool"):
            raise RequestError(f"a message from `{role}` cannot hold images", field)

    pixels = PixelBudget()

    async def read(field: str, url: str) -> bytes:
        try:
            return await read_image(url, allow_private, pixels)
        except InputError as error:
            raise RequestError(str(error), field) from None

    try:
        async with asyncio.TaskGroup() as group:
            reading = {
                field: group.create_task(read(field, url)) for field, (_, url) in places.items()
            }
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {field: task.result() for field, task in reading.items()}


def _read_message(message: ChatMessage, index: int, images: Mapping[str, bytes]) -> Message:
    where = f"messages[{index}]"
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(message.content):
        if part.image_url is None:
            parts.append({"type": "text", "text": part.text})
        else:
            image = images[f"{where}.content[{number}].image_url.url"]
            parts.append({"type": "image", "image": image})
    if not parts and not message.tool_calls:
        raise RequestError("the message is empty", f"{where}.content")
    read: Message = {"role": message.role, "content": parts}
    if message.tool_calls:
        if message.role != "assistant":
            raise RequestError("only `assistant` messages call tools", f"{where}.tool_calls")
        read["tool_calls"] = [
            _read_call(call, f"{where}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool":
        if message.tool_call_id is None:
            raise RequestError("a tool message names its call", f"{where}.tool_call_id")
        read["tool_call_id"] = message.tool_call_id
    return read


def _read_call(call: RequestedCall, where: str) -> dict[str, Any]:
    field = f"{where}.function.arguments"
    try:
        arguments = json.loads(call.function.arguments)
        json.dumps(arguments, ensure_ascii=False).encode()  # fails on half of a surrogate pair
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond all bounds
        raise RequestError(f"the arguments are not valid JSON: {error}", field) from None
    if not isinstance(arguments, dict):
        raise RequestError("the arguments are a JSON object", field)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


class Reply:
    """One completion's identity, rendered whole or as chunks of a stream."""

    def __init__(self, model: str, name: str) -> None:
        self._head = {"id": name, "created": int(time.time()), "model": model}

    def completion(self, rollouts: Sequence[Rollout], tools_offered: bool) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        fields = [toolwise_field(rollout, tools_offered) for rollout in rollouts]
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer_text(rollout)},
                "finish_reason": finish_reason(rollout),
            }
            for index, rollout in enumerate(rollouts)
        ]
        if len(choices) > 1:
            for choice, field in zip(choices, fields, strict=True):
                choice["toolwise"] = field
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(rollouts),
            "toolwise": fields[0],
        }

    def chunk(
        self, delta: dict[str, Any], finish: str | None = None, index: int = 0, **extra: Any
    ) -> dict[str, Any]:
        """One chunk of a stream."""
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **extra}

    def end(self, index: int, rollout: Rollout, tools_offered: bool) -> dict[str, Any]:
        """A choice's last chunk, with its `toolwise` field."""
        field = toolwise_field(rollout, tools_offered)
        return self.chunk({}, finish_reason(rollout), index, toolwise=field)

    def usage_chunk(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """The chunk that carries the usage, and no choice."""
        return {**self.chunk({}), "choices": [], "usage": usage(rollouts)}


def finish_reason(rollout: Rollout) -> str:
    """OpenAI's word for why the reply ends: `length` where a limit ended it."""
    return "length" if rollout.stop_reason in ("length", "max_turns") else "stop"


def usage(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """Tokens over all turns of all choices; the prompt counts again in each."""
    read = sum(rollout.prompt_tokens for rollout in rollouts)
    wrote = sum(rollout.completion_tokens for rollout in rollouts)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def toolwise_field(rollout: Rollout, tools_offered: bool) -> dict[str, Any]:
    """What the agent did: its calls, whether it abstained though it had tools, how it ended.

    `model_seconds` and `tool_seconds` are the time spent in turns and in calls.
    """
    return {
        "calls": [call_field(call) for call in rollout.calls],
        "tool_calls": rollout.tool_calls,
        "abstained": tools_offered and rollout.tool_calls == 0,
        "stop_reason": rollout.stop_reason,
        "model_seconds": round(rollout.model_seconds, 4),
        "tool_seconds": round(rollout.tool_seconds, 4),
    }


def call_field(call: CallRecord) -> dict[str, Any]:
    """One call: what was asked, what came back."""
    return {
        "name": call.name,
        "arguments": call.arguments,
        "result": call.result.text,
        "images": len(call.result.images),
        "is_error": call.result.is_error,
        "seconds": round(call.result.seconds, 4),
    }


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def validation_error(errors: Sequence[Any]) -> RequestError:
    """The first of pydantic's complaints, naming its field."""
    first = errors[0]
    location = [step for step in first["loc"] if step != "body"]
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not valid JSON: {first['ctx']['error']}")
    field = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in location).lstrip(".")
    message = {
        "extra_forbidden": f"`{field}` is not supported",
        "missing": f"`{field}` is missing" if field else "the body is missing",
    }.get(first["type"], f"`{field}`: {first['msg'].removeprefix('Value error, ')}")
    return RequestError(message, field or None)


def server_sent(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(body) + b"\n\n"
