"""Asking an endpoint as `toolwise ask` does: the calls as they end, the answer as it comes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from toolwise.data import data_uri
from toolwise.errors import BackendError, InputError

KEY = "TOOLWISE_API_KEY"
"""Variable that holds the key, for endpoints that ask for one."""


@dataclass(frozen=True, slots=True)
class Called:
    """A tool call that has ended."""

    name: str
    arguments: dict[str, Any]
    result: str
    is_error: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The reply is over.

    Args:
        seconds: from the question to the end.
        tool_calls: calls made.
        abstained: tools were offered and none was called.
        tokens: read and written.
    """

    seconds: float
    tool_calls: int
    abstained: bool
    tokens: int


def ask_stream(
    url: str, model: str, question: str, images: Sequence[str] = (), tools: bool = True
) -> Iterator[Called | str | Ended]:
    """Ask one question, greedily.

    Args:
        url: base URL of the endpoint.
        model: its name there.
        question: the text.
        images: paths, or http(s) URLs, of pictures to go with it.
        tools: whether the model may call any.

    Yields:
        Each call as it ends, the answer in pieces, the end.

    Raises:
        InputError: a picture cannot be read, or the endpoint refuses the request.
        BackendError: the endpoint could not be reached or failed.
    """
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": _url(image)}} for image in images
    ]
    content.append({"type": "text", "text": question})
    started = time.perf_counter()
    try:
        with openai.OpenAI(base_url=url, api_key=os.environ.get(KEY, "none")) as client:
            chunks = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": content}],
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"tool_choice": "auto" if tools else "none"},
            )
            done: dict[str, Any] = {}
            tokens = 0
            for chunk in chunks:
                told: dict[str, Any] = (chunk.model_extra or {}).get("toolwise", {})
                if call := told.get("call"):
                    yield Called(
                        call["name"],
                        call["arguments"],
                        call["result"],
                        call["is_error"],
                        call["seconds"],
                    )
                elif "stop_reason" in told:
                    done = told
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content
                if chunk.usage:
                    tokens = chunk.usage.total_tokens
    except openai.RateLimitError as error:
        raise BackendError(f"{url} is busy: {error.message}") from error
    except openai.InternalServerError as error:
        raise BackendError(f"{url} failed: {error.message}") from error
    except openai.APIStatusError as error:
        raise InputError(f"{url} refuses the request: {error.message}") from error
    except openai.OpenAIError as error:
        raise BackendError(f"{url} failed: {error}") from error
    yield Ended(
        time.perf_counter() - started,
        done.get("tool_calls", 0),
        done.get("abstained", False),
        tokens,
    )


def _url(image: str) -> str:
    if image.startswith(("http://", "https://", "data:")):
        return image
    try:
        return data_uri(Path(image).read_bytes())
    except OSError as error:
        raise InputError(f"the picture {image}: {error.strerror}") from None
