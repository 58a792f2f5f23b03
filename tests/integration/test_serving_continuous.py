"""Continuous batching writes what each conversation would get alone, whoever else is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from toolwise.agent import Sampling, Turn
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data import Message, encode_image
from toolwise.errors import BackendError, InputError
from toolwise.serving.continuous import ContinuousEngine
from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA

Conversation = list[Message]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    torch.manual_seed(3)
    processor = build_processor([PYTHON_SCHEMA])
    engine = TransformersEngine(build_model(processor.tokenizer).eval(), processor, "tiny")
    # An untrained model writes random bytes; these are no text at all.
    bytes_only = [n for n in range(len(processor.tokenizer)) if "\ufffd" in text_of(engine, n)]
    engine.suppressed_ids = [*engine.suppressed_ids, *bytes_only]
    return engine


def text_of(engine: TransformersEngine, token: int) -> str:
    return engine.renderer.tokenizer.decode([token])


def question(text: str, colour: str | None = None) -> Conversation:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if colour:
        parts.insert(
            0, {"type": "image", "image": encode_image(Image.new("RGB", (64, 40), colour))}
        )
    return [{"role": "user", "content": parts}]


def result(text: str, colour: str | None = None) -> list[Message]:
    [message] = question(text, colour)
    return [{**message, "role": "tool", "tool_call_id": "call_0"}]


QUESTIONS = [
    question("What is it?", "red"),
    question("12 + 30"),
    question("Which colour has the sign on the left of the door?", "blue"),
    question("no"),
    question("What is it?", "green"),
    question("a b c d e f g h i j k"),
]


async def alone(
    engine: TransformersEngine, conversation: Conversation, sampling: Sampling
) -> tuple[Turn, Turn]:
    """Two turns with a tool result between them."""
    batch = engine.start([conversation], [PYTHON_SCHEMA])
    [first] = await batch.generate([0], sampling)
    batch.append(0, result("42", "red"))
    [second] = await batch.generate([0], sampling)
    return first, second


async def among_others(
    engine: ContinuousEngine, conversation: Conversation, sampling: Sampling
) -> tuple[Turn, Turn]:
    batch = engine.start([conversation], [PYTHON_SCHEMA])
    [first] = await batch.generate([0], sampling)
    batch.append(0, result("42", "red"))
    [second] = await batch.generate([0], sampling)
    return first, second


async def test_greedy_turns_are_those_of_each_conversation_alone(
    engine: TransformersEngine,
) -> None:
    samplings = [Sampling(max_tokens=5 + 7 * n) for n in range(len(QUESTIONS))]
    expected = [await alone(engine, q, s) for q, s in zip(QUESTIONS, samplings, strict=True)]
    served = ContinuousEngine(engine)
    async with served.connected():
        got = await asyncio.gather(
            *(among_others(served, q, s) for q, s in zip(QUESTIONS, samplings, strict=True))
        )
    for theirs, ours in zip(expected, got, strict=True):
        assert [turn.token_ids for turn in ours] == [turn.token_ids for turn in theirs]
        assert [turn.text for turn in ours] == [turn.text for turn in theirs]
        assert [turn.prompt_tokens for turn in ours] == [turn.prompt_tokens for turn in theirs]


async def test_a_latecomer_is_written_while_an_earlier_turn_goes_on(
    engine: TransformersEngine,
) -> None:
    served = ContinuousEngine(engine)
    ended: list[str] = []
    begun = asyncio.Event()

    async def ask(name: str, tokens: int) -> None:
        batch = served.start([question(name)], [])
        await batch.stream([0], Sampling(max_tokens=tokens), lambda *_: begun.set())
        ended.append(name)

    async with served.connected():
        long = asyncio.create_task(ask("long", 300))
        await begun.wait()
        await ask("short", 3)
        await long
    assert ended == ["short", "long"]


async def test_the_text_is_told_as_it_is_written(engine: TransformersEngine) -> None:
    served = ContinuousEngine(engine)
    told: list[tuple[int, str]] = []
    async with served.connected():
        batch = served.start([QUESTIONS[0], QUESTIONS[1]], [])
        turns = await batch.stream([0, 1], Sampling(max_tokens=20), lambda *what: told.append(what))
        # What is told on the way to the last token has arrived before the turn.
    for index, turn in enumerate(turns):
        pieces = [text for told_index, text in told if told_index == index]
        assert "".join(pieces) == turn.text
        assert len(pieces) > 5


async def test_a_seed_gives_the_same_tokens_alone_and_in_company(
    engine: TransformersEngine,
) -> None:
    served = ContinuousEngine(engine)
    sampling = Sampling(temperature=1, top_p=0.9, max_tokens=24, seed=7)

    async def ask(conversation: Conversation, sampling: Sampling) -> Turn:
        [turn] = await served.start([conversation], []).generate([0], sampling)
        return turn

    async with served.connected():
        alone = await ask(QUESTIONS[0], sampling)
        together = await asyncio.gather(
            ask(QUESTIONS[0], sampling),
            *(ask(q, Sampling(temperature=1, max_tokens=30)) for q in QUESTIONS),
        )
        other = await ask(QUESTIONS[0], Sampling(temperature=1, max_tokens=24, seed=8))
    assert together[0].token_ids == alone.token_ids
    assert other.token_ids != alone.token_ids


@pytest.mark.parametrize(
    "hardly_sampled",
    [Sampling(1e-50, max_tokens=6, seed=1), Sampling(1.0, 1e-50, max_tokens=6, seed=1)],
)
async def test_what_hardly_samples_takes_the_likeliest_token_and_harms_nobody(
    engine: TransformersEngine, hardly_sampled: Sampling
) -> None:
    served = ContinuousEngine(engine)
    async with served.connected():
        likeliest, other, turn = await asyncio.gather(
            served.start([QUESTIONS[0]], []).generate([0], Sampling(max_tokens=6)),
            served.start([QUESTIONS[1]], []).generate([0], Sampling(max_tokens=30)),
            served.start([QUESTIONS[0]], []).generate([0], hardly_sampled),
        )
    assert turn[0].token_ids == likeliest[0].token_ids
    assert other[0].finish_reason


async def test_a_stop_string_ends_the_turn_where_it_begins(engine: TransformersEngine) -> None:
    served = ContinuousEngine(engine)
    told: list[str] = []
    async with served.connected():
        [whole] = await served.start([QUESTIONS[1]], []).generate([0], Sampling(max_tokens=40))
        stop = whole.text[12:15]
        [cut] = await served.start([QUESTIONS[1]], []).stream(
            [0], Sampling(max_tokens=40, stop=(stop,)), lambda _, text: told.append(text)
        )
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert "".join(told) == cut.text
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < whole.completion_tokens


async def test_a_turn_nobody_waits_for_gives_its_place_up(engine: TransformersEngine) -> None:
    served = ContinuousEngine(engine)
    begun = asyncio.Event()
    async with served.connected():
        batch = served.start([QUESTIONS[0]], [])
        left = asyncio.create_task(
            batch.stream([0], Sampling(max_tokens=400), lambda *_: begun.set())
        )
        await begun.wait()
        left.cancel()
        [turn] = await served.start([QUESTIONS[1]], []).generate([0], Sampling(max_tokens=4))
        assert turn.completion_tokens == 4
        rows: Sequence[Any] = served._scheduler._rows
        assert not rows


async def test_what_is_too_long_is_refused_and_what_grows_too_long_is_cut(
    engine: TransformersEngine,
) -> None:
    served = ContinuousEngine(engine)
    async with served.connected():
        with pytest.raises(InputError, match="tokens is too long"):
            await served.start([question("x " * 1000)], []).generate([0], Sampling())
        # So long that it is not even turned into tokens.
        with pytest.raises(InputError, match="characters is too long"):
            await served.start([question("x " * 500_000)], []).generate([0], Sampling())
        batch = served.start([question("x")], [])
        await batch.generate([0], Sampling(max_tokens=2))
        batch.append(0, result("y " * 600))
        [turn] = await batch.generate([0], Sampling(max_tokens=50))
        assert turn.finish_reason == "length"
        assert turn.completion_tokens == 1


async def test_a_model_that_fails_fails_the_turns_it_had_and_goes_on(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ContinuousEngine(engine)
    async with served.connected():
        with monkeypatch.context() as broken:
            broken.setattr(engine.model, "forward", lambda **_: 1 / 0)
            with pytest.raises(BackendError, match="ZeroDivisionError"):
                await served.start([QUESTIONS[1]], []).generate([0], Sampling())
        [turn] = await served.start([QUESTIONS[1]], []).generate([0], Sampling(max_tokens=3))
        assert turn.completion_tokens == 3
