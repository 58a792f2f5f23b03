"""What an OpenAI reply reads like as protocol text."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest
from PIL import Image

from toolwise.agent import openai_engine, parse_turn
from toolwise.agent.openai_engine import OpenAIEngine, Reply, protocol_text
from toolwise.data import encode_image


def reply(content: str | None, *calls: tuple[str, str]) -> Reply:
    return Reply.model_validate(
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": n, "arguments": a}}
                for n, a in calls
            ],
        }
    )


def test_native_calls_parse_to_what_was_called() -> None:
    message = reply("I see.", ("python", '{"code": "print(1)"}'), ("text_search", "{}"))
    parsed = parse_turn(protocol_text(message))
    assert parsed.content == "I see."
    assert [(c.name, c.arguments, c.error) for c in parsed.calls] == [
        ("python", {"code": "print(1)"}, None),
        ("text_search", {}, None),
    ]


def test_arguments_that_spell_the_closing_tag_stay_whole() -> None:
    code = "print('</tool_call>')"
    parsed = parse_turn(protocol_text(reply(None, ("python", json.dumps({"code": code})))))
    assert [c.arguments for c in parsed.calls] == [{"code": code}]


def test_malformed_arguments_reach_the_model_as_an_error() -> None:
    [call] = parse_turn(protocol_text(reply(None, ("python", '{"code": ')))).calls
    assert call.error is not None
    assert "JSON" in call.error


@pytest.mark.parametrize("code", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000])
def test_arguments_beyond_all_bounds_reach_the_model_as_an_error(code: str) -> None:
    [call] = parse_turn(protocol_text(reply(None, ("python", f'{{"code": {code}}}')))).calls
    assert call.error is not None


def test_an_empty_reply_is_an_empty_turn() -> None:
    assert protocol_text(reply(None)) == ""


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://127.0.0.1:8000/v1", None),
        ("http://[::1]:8000/v1", None),
        ("http://localhost:8000/v1", None),
        ("http://vllm:8000/v1", "http://127.0.0.1:9"),
    ],
)
def test_the_environments_proxy_is_not_for_this_machine(
    url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert openai_engine._proxy(url) == proxy


def test_conversations_with_the_same_image_share_its_text_while_one_is_held() -> None:
    image = encode_image(Image.frombytes("RGB", (1000, 1000), os.urandom(3_000_000)))
    conversation = [{"role": "user", "content": [{"type": "image", "image": image}]}]
    engine = OpenAIEngine("http://127.0.0.1:9/v1", "m")
    tracemalloc.start()
    try:
        held = [engine.start([conversation], []) for _ in range(8)]
        size, most = tracemalloc.get_traced_memory()
        assert len(image) < size < 2 * len(image)
        assert most < 4 * len(image)
        held.clear()
        assert tracemalloc.get_traced_memory()[0] < len(image) / 10
    finally:
        tracemalloc.stop()
