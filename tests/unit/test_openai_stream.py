"""A streamed reply, as the work behind it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from toolwise.agent import Rollout
from toolwise.data import Task
from toolwise.serving import streaming
from toolwise.serving.openai_api import ChatRequest, Reply
from toolwise.serving.streaming import AnswerStream, Listener

ASKED = ChatRequest.model_validate(
    {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
)
COMMENT = b": still at it\n\n"


@pytest.mark.parametrize("silent", ["from the beginning", "amid the answer"])
async def test_comments_keep_a_quiet_stream_open(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_KEEP_ALIVE_SECONDS", 0.01)
    let_go = asyncio.Event()

    async def work(listener: Listener) -> list[Rollout]:
        if silent == "amid the answer":
            listener(0, "fo")
        await let_go.wait()
        message: Any = {"role": "assistant", "content": "<answer>four</answer>"}
        task = Task("a", "a", "math", "x", ())
        return [Rollout(task, [message], answer="four", stop_reason="answer")]

    stream = AnswerStream(ASKED, Reply("m", "1"), work)
    async with asyncio.timeout(30):
        await stream.begin()
        chunks: AsyncIterator[bytes] = stream.chunks()
        comments = 0
        sent = b""
        async for chunk in chunks:
            sent += chunk
            comments += chunk == COMMENT
            if comments == 2:
                let_go.set()
    assert comments >= 2
    assert b"[DONE]" in sent
    assert (b'"fo"' in sent) == (silent == "amid the answer")
    assert b"ur" in sent


async def test_what_fails_before_anything_has_happened_is_raised() -> None:
    async def work(_: Listener) -> list[Rollout]:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        await AnswerStream(ASKED, Reply("m", "1"), work).begin()
