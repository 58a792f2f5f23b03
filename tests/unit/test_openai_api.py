"""Requests as they are read, and refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from toolwise.serving.openai_api import (
    ChatRequest,
    Conversation,
    RequestError,
    read_conversation,
    validation_error,
)

USER = {"role": "user", "content": "hi"}


def picture(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, kind)
    return buffer.getvalue()


def image_part(data: bytes) -> dict[str, Any]:
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": uri}}


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(ValidationError) as failure:
        ChatRequest.model_validate({"model": "m", "messages": [USER], **fields})
    return validation_error(failure.value.errors())


async def read(*messages: dict[str, Any]) -> Conversation:
    request = ChatRequest.model_validate({"model": "m", "messages": list(messages)})
    return await read_conversation(request, allow_private=False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ""}, "stop[0]"),
        ({"n": 9}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_tool_calls": -1}, "max_tool_calls"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user", "content": 7}]}, "messages[1].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]},
            "messages[0].content[0].txt",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages[0].content[0]",
        ),
        ({"stream": True, "stream_options": {"every": 1}}, "stream_options.every"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"messages": [USER] * 1001}, "messages"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert param in str(error)
    assert error.status == 400


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValidationError) as failure:
        ChatRequest.model_validate({"messages": [USER]})
    assert validation_error(failure.value.errors()).param == "model"


def test_null_means_not_given() -> None:
    request = ChatRequest.model_validate(
        {"model": "m", "messages": [USER], "seed": None, "tools": None, "logit_bias": None}
    )
    assert request.tools == "auto"
    assert request.sampling(max_tokens=64).max_tokens == 64


@pytest.mark.parametrize("field", ["tools", "tool_choice"])
def test_either_field_keeps_tools_back(field: str) -> None:
    request = ChatRequest.model_validate({"model": "m", "messages": [USER], field: "none"})
    assert not request.tools_offered


async def test_images_of_all_user_messages_are_the_tasks_images() -> None:
    red, blue = picture("red"), picture("blue")
    asked = await read(
        {"role": "user", "content": [image_part(red), {"type": "text", "text": "first"}]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "second"}, image_part(blue)]},
    )
    assert asked.images == (red, blue)
    assert asked.question == "second"
    assert asked.messages[0]["content"][0] == {"type": "image", "image": red}


async def test_earlier_calls_come_back_with_arguments_as_objects() -> None:
    function = {"name": "python", "arguments": '{"code": "1"}'}
    asked = await read(
        USER,
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "1"},
    )
    assert asked.messages[1]["tool_calls"][0]["function"]["arguments"] == {"code": "1"}
    assert asked.messages[2]["tool_call_id"] == "c"


@pytest.mark.parametrize(
    "arguments",
    [
        "{",
        "[1]",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "1" * 5000 + "}",
        '{"code": "\\ud800"}',
        '{"\\udfff": 1}',
    ],
)
async def test_arguments_that_cannot_be_read_are_named(arguments: str) -> None:
    function = {"name": "python", "arguments": arguments}
    call = {"id": "c", "type": "function", "function": function}
    asked = {"role": "assistant", "tool_calls": [call]}
    with pytest.raises(RequestError) as failure:
        await read(USER, asked, {"role": "tool", "tool_call_id": "c", "content": "1"})
    assert failure.value.param == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": "x"}, "messages"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        (
            {"role": "user", "content": [image_part(b"not an image")]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [image_part(picture("red"))] * 17},
            "messages",
        ),
    ],
)
async def test_a_message_that_cannot_be_used_is_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as failure:
        await read(message)
    assert failure.value.param == param
