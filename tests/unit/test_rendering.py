"""What training renders is what inference reads, token for token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from toolwise.agent import rendering
from toolwise.agent.rendering import Renderer
from toolwise.data import Message, decode_image, encode_image
from toolwise.synthetic.model import build_processor

SCHEMA = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs code.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}},
    },
}
PICTURE = encode_image(Image.new("RGB", (96, 96), "teal"))
SLIVER = encode_image(Image.new("RGB", (2000, 3), "red"))

processor = build_processor([SCHEMA])
renderer = Renderer(processor)
PIECES = [
    *"ab 1+\n<>|{}\"'é",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|image_pad|>",
    "<tool_call>",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def user(text: str, *images: bytes) -> Message:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def call(code: str) -> Message:
    function = {"name": "python", "arguments": {"code": code}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }


def result(text: str, *images: bytes) -> Message:
    return {**user(text, *images), "role": "tool", "tool_call_id": "call_0"}


def answer(text: str) -> Message:
    return {"role": "assistant", "content": f"<answer>{text}</answer>"}


def whole_at_once(messages: list[Message], tools: list[dict]) -> list[int]:
    """The processor's own rendering of a conversation, as one string."""
    images = [
        decode_image(part["image"])
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image"
    ]
    text = processor.tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False)
    batch = processor(text=[text], images=images or None)
    return list(batch["input_ids"][0])


@pytest.mark.parametrize("tools", [[], [SCHEMA]])
def test_pieces_equal_the_processors_own_rendering_of_the_whole(tools: list[dict]) -> None:
    messages = [
        user("What stands there?", PICTURE),
        call("show(image)"),
        result("", PICTURE),
        call("print(1 + 1)"),
        result("2"),
        answer("42"),
    ]
    rendered = renderer.conversation(messages, tools)
    newline = renderer.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert rendered.ids + newline == whole_at_once(messages, tools)
    assert rendered.images == (PICTURE, PICTURE)
    assert rendered.ids.count(renderer.image_id) == 2 * 9


@given(question=TEXT, code=TEXT, output=TEXT, final=TEXT, shown=st.booleans())
@settings(max_examples=60, deadline=None)
def test_prompt_turns_and_tool_results_concatenate_to_the_conversation(
    question: str, code: str, output: str, final: str, shown: bool
) -> None:
    turns = [call(code), answer(final)]
    start, tool = user(question, PICTURE), result(output, *([PICTURE] if shown else []))
    whole = renderer.conversation([start, turns[0], tool, turns[1]], [SCHEMA])
    prompt, between = renderer.prompt([start], [SCHEMA]), renderer.tool_results([tool])
    first_end = whole.ids.index(renderer.end_id, len(prompt.ids)) + 1
    last = whole.ids[first_end + len(between.ids) :]
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert whole.ids[first_end : first_end + len(between.ids)] == between.ids
    assert whole.images == prompt.images + between.images
    assert whole.mask == (
        [0] * len(prompt.ids)
        + [1] * (first_end - len(prompt.ids))
        + [0] * len(between.ids)
        + [1] * len(last)
    )
    assert last[-1] == renderer.end_id


def test_text_that_spells_a_control_token_does_not_become_one() -> None:
    rendered = renderer.prompt([user("<|im_end|><|image_pad|>", PICTURE)])
    assert rendered.ids.count(renderer.end_id) == 1
    assert rendered.ids.count(renderer.image_id) == 9


def test_cached_texts_take_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_TEXT_CACHE_BYTES", 100_000)
    own = Renderer(processor)
    for number in range(20):
        own.prompt([user(f"{number} " + "a" * 1000)])
    kept = [len(one.rendered.ids) for one in own._texts.values()]
    assert kept
    assert sum(kept) * 36 <= 100_000  # a list's place and an integer are 8 + 28 bytes
    own.prompt([user("a" * 10_000)])
    assert (len(own._texts), own._text_bytes) == (0, 0)


def test_a_sliver_a_tool_shows_is_an_image_like_any_other() -> None:
    pixels = renderer.pixels(SLIVER)
    assert pixels.values.shape[0] == pixels.grid[1] * pixels.grid[2]
    assert renderer.tool_results([result("", SLIVER)]).images == (SLIVER,)
