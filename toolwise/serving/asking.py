"""Asking an endpoint: a client that says in words what goes wrong, and what `toolwise ask` does."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from toolwise.agent.openai_engine import is_loopback
from toolwise.data import CorruptImage, data_uri, decode_image
from toolwise.errors import BackendError, InputError
from toolwise.serving.settings import KEY_VARIABLE


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


@contextmanager
def asking(url: str) -> Iterator[openai.OpenAI]:
    """A client of the endpoint at `url`, with the key of `KEY_VARIABLE`.

    Raises:
        InputError: URL or key are none, or the endpoint refuses the request.
        BackendError: the endpoint could not be reached or failed.
    """
    key = os.environ.get(KEY_VARIABLE) or "none"
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"{KEY_VARIABLE} holds no API key: a key is ASCII without spaces")
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets without an address, a port that is no number
        known = False
    if not known:
        raise InputError(f"{url} is not an http or https URL")
    http = openai.DefaultHttpxClient(trust_env=not is_loopback(url))
    try:
        with openai.OpenAI(base_url=url, api_key=key, http_client=http) as client:
            yield client
    except openai.RateLimitError as error:
        raise BackendError(f"{url} is busy: {error.message}") from error
    except openai.InternalServerError as error:
        raise BackendError(f"{url} failed: {error.message}") from error
    except openai.APIStatusError as error:
        raise InputError(f"{url} refuses the request: {error.message}") from error
    except openai.OpenAIError as error:
        raise BackendError(f"{url} failed: {error}") from error


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
    done: dict[str, Any] = {}
    tokens = 0
    with asking(url) as client:
        chunks = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": content}],
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"tool_choice": "auto" if tools else "none"},
        )
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
        data = Path(image).read_bytes()
        decode_image(data)
    except OSError as error:
        raise InputError(f"the picture {image}: {error.strerror}") from None
    except CorruptImage as error:
        raise InputError(f"the picture {image}: {error.reason}") from None
    return data_uri(data)
