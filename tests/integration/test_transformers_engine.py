"""The in-process engine against transformers' own generation and a plain forward pass."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from toolwise.agent import Sampling
from toolwise.agent.transformers_batch import TransformersBatch
from toolwise.agent.transformers_engine import TransformersEngine, own_device
from toolwise.data import Message, encode_image
from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    processor = build_processor([PYTHON_SCHEMA], ["What is "])
    return TransformersEngine(build_model(processor.tokenizer).eval(), processor)


def picture(shade: int) -> bytes:
    return encode_image(Image.new("RGB", (288, 288), (shade, 90, 20)))


def question(images: int, digits: int) -> list[Message]:
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": picture(40 * digits)} for _ in range(images)
    ]
    parts.append({"type": "text", "text": f"What is {'7' * digits}?"})
    return [{"role": "user", "content": parts}]


RAGGED = [question(images=row % 3, digits=row + 1) for row in range(6)]
RAGGED += [RAGGED[4], RAGGED[0]]  # a prompt that stands twice is read once
SHOWN: list[Message] = [
    {
        "role": "tool",
        "tool_call_id": "call_0",
        "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "hello"}],
    }
]


def told(text: str, images: int) -> list[Message]:
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": picture(len(text) + n)} for n in range(images)
    ]
    return [
        {"role": "tool", "tool_call_id": "c", "content": [*parts, {"type": "text", "text": text}]}
    ]


def inputs(engine: TransformersEngine, ids: list[int], images: tuple[bytes, ...]) -> dict[str, Any]:
    tokens = torch.tensor([ids])
    found: dict[str, Any] = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == engine.model.config.image_token_id).int(),
    }
    if images:
        pixels = [engine.renderer.pixels(image) for image in images]
        found["pixel_values"] = torch.cat([p.values for p in pixels])
        found["image_grid_thw"] = torch.tensor([p.grid for p in pixels])
    return found


def two_turns(engine: TransformersEngine, sampling: Sampling) -> TransformersBatch:
    """A turn for every conversation, then one more for two of them, after a tool's result."""
    batch = engine.start(RAGGED, [PYTHON_SCHEMA])
    asyncio.run(batch.generate(range(len(RAGGED)), sampling))
    for row in (1, 4):
        batch.append(row, SHOWN)
    asyncio.run(batch.generate([1, 4], sampling))
    return batch


def test_greedy_decoding_of_a_ragged_batch_writes_the_tokens_of_model_generate(engine) -> None:
    batch = engine.start(RAGGED, [PYTHON_SCHEMA])
    turns = asyncio.run(batch.generate(range(len(RAGGED)), Sampling(max_tokens=12)))
    for messages, turn in zip(RAGGED, turns, strict=True):
        prompt = engine.renderer.prompt(messages, [PYTHON_SCHEMA])
        expected = engine.model.generate(
            **inputs(engine, prompt.ids, prompt.images),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=engine.suppressed_ids,
        )[0, len(prompt.ids) :]
        assert list(turn.token_ids) == expected.tolist()


def test_greedy_turns_after_tools_are_those_of_model_generate(engine) -> None:
    batch = engine.start(RAGGED, [PYTHON_SCHEMA])
    asyncio.run(batch.generate(range(len(RAGGED)), Sampling(max_tokens=6)))
    for turn in range(2):  # 4 and 6 began as one, and are told different things
        for row in (1, 2, 4, 6):
            batch.append(row, told(f"{turn}{row}", images=row % 3))
        before = [batch.tokens(row) for row in (1, 2, 4, 6)]
        turns = asyncio.run(batch.generate([1, 2, 4, 6], Sampling(max_tokens=6)))
        for record, written in zip(before, turns, strict=True):
            ids = [*record.prompt_ids, *record.completion_ids]
            expected = engine.model.generate(
                **inputs(engine, ids, record.images),
                max_new_tokens=6,
                do_sample=False,
                suppress_tokens=engine.suppressed_ids,
            )[0, len(ids) :]
            assert list(written.token_ids) == expected.tolist()


def test_a_group_is_computed_once_for_as_long_as_it_writes_the_same(engine) -> None:
    def computed(copies: int) -> tuple[int, int, int]:
        before = replace(engine.stats)
        batch = engine.start([RAGGED[1]] * copies, [PYTHON_SCHEMA])
        turns = asyncio.run(batch.generate(range(copies), Sampling(max_tokens=6)))
        assert len({turn.token_ids for turn in turns}) == 1
        step = engine.stats.since(before)
        return step.computed, step.images, step.shared

    tokens, images, shared = computed(1)
    assert (images, shared) == (1, 0)
    assert computed(5) == (tokens, images, 4 * tokens)


def test_a_tool_turn_reads_only_what_is_new(engine) -> None:
    batch = engine.start([RAGGED[1]], [PYTHON_SCHEMA])
    asyncio.run(batch.generate([0], Sampling(max_tokens=6)))
    batch.append(0, SHOWN)
    before = replace(engine.stats)
    (turn,) = asyncio.run(batch.generate([0], Sampling(max_tokens=6)))
    step, shown = engine.stats.since(before), engine.renderer.tool_results(SHOWN)
    # The last token of a turn is read with what follows it.
    assert step.computed == 1 + len(shown.ids) + turn.completion_tokens - 1
    assert step.images == len(shown.images) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_logprobs_over_two_turns_are_those_of_one_forward_pass(engine, temperature) -> None:
    batch = two_turns(engine, Sampling(temperature=temperature, max_tokens=10, seed=3))
    for row in range(len(RAGGED)):
        record = batch.tokens(row)
        ids = [*record.prompt_ids, *record.completion_ids]
        with torch.no_grad():
            logits = engine.model(**inputs(engine, ids, record.images)).logits[0]
        logits[:, engine.suppressed_ids] = float("-inf")
        logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
        start = len(record.prompt_ids)
        for at, (token, mine, found) in enumerate(
            zip(record.completion_ids, record.mask, record.logprobs, strict=True)
        ):
            expected = float(logprobs[start + at - 1, token]) if mine else 0.0
            assert found == pytest.approx(expected, abs=1e-4)


def test_the_token_record_is_the_conversation_as_training_renders_it(engine) -> None:
    record = two_turns(engine, Sampling(max_tokens=10)).tokens(1)
    between = engine.renderer.tool_results(SHOWN).ids
    first = engine.renderer.prompt(RAGGED[1], [PYTHON_SCHEMA])
    assert list(record.prompt_ids) == first.ids
    at = record.mask.index(0)
    assert list(record.completion_ids[at : at + len(between)]) == between
    assert record.images == (*first.images, picture(3))
    assert record.prompt_images == 1


def test_a_seed_repeats_a_sampled_batch_and_another_seed_does_not(engine) -> None:
    def sampled(seed: int) -> list[tuple[int, ...]]:
        batch = engine.start(RAGGED, [])
        turns = asyncio.run(
            batch.generate(range(8), Sampling(temperature=1.0, max_tokens=8, seed=seed))
        )
        return [turn.token_ids for turn in turns]

    assert sampled(5) == sampled(5)
    assert sampled(5) != sampled(6)


def test_control_tokens_are_never_sampled_and_a_cut_turn_says_length(engine) -> None:
    batch = engine.start(RAGGED, [])
    turns = asyncio.run(batch.generate(range(8), Sampling(temperature=5.0, max_tokens=40, seed=1)))
    for turn in turns:
        assert not set(turn.token_ids) & set(engine.suppressed_ids)
        ended = turn.token_ids[-1] == engine.renderer.end_id
        assert turn.finish_reason == ("stop" if ended else "length")


def test_a_tiny_nucleus_is_greedy(engine) -> None:
    def tokens(sampling: Sampling) -> list[tuple[int, ...]]:
        batch = engine.start(RAGGED, [])
        return [turn.token_ids for turn in asyncio.run(batch.generate(range(8), sampling))]

    nucleus = Sampling(temperature=1.0, top_p=1e-6, max_tokens=8, seed=0)
    assert tokens(nucleus) == tokens(Sampling(max_tokens=8))


@pytest.mark.parametrize(
    ("gpus", "rank", "device"),
    [(0, "1", "cpu"), (1, None, "cuda:0"), (1, "1", "cuda:0"), (2, "3", "cuda:1")],
)
def test_processes_side_by_side_share_out_the_gpus(monkeypatch, gpus, rank, device) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert own_device() == device


def test_a_bf16_checkpoint_answers_two_turns_in_bf16(tmp_path: Path):
    processor = build_processor([PYTHON_SCHEMA], ["What is "])
    build_model(processor.tokenizer).to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    engine = TransformersEngine.load(tmp_path, device="cpu")
    assert engine.model.dtype == torch.bfloat16
    batch = two_turns(engine, Sampling(max_tokens=6))
    for row in (1, 4):
        record = batch.tokens(row)
        assert 0 < sum(record.mask) <= 12
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in record.logprobs)
