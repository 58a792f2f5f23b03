"""A conversation as tokens: what it was given, what the model wrote, and the turns these make."""

from __future__ import annotations

import pytest
from PIL import Image

from toolwise.agent import Sampling
from toolwise.agent.conversation import Conversation, turn_of
from toolwise.agent.rendering import Rendered, Renderer
from toolwise.data import encode_image
from toolwise.synthetic.model import build_processor

PICTURE, CROP = (encode_image(Image.new("RGB", (32, 32), color)) for color in ("teal", "red"))
renderer = Renderer(build_processor([]))


def test_a_record_tells_what_was_written_from_what_was_given() -> None:
    conversation = Conversation([1, 2], [PICTURE])
    conversation.write([3, 4], [-0.5, -0.25])
    conversation.give(Rendered([5, 6, 7], (CROP,)))
    conversation.write([8], [-1.0])
    record = conversation.record()
    assert record.prompt_ids == (1, 2)
    assert record.completion_ids == (3, 4, 5, 6, 7, 8)
    assert record.mask == (1, 1, 0, 0, 0, 1)
    assert record.logprobs == (-0.5, -0.25, 0.0, 0.0, 0.0, -1.0)
    assert (record.images, record.prompt_images) == ((PICTURE, CROP), 1)


@pytest.mark.parametrize(
    ("written", "stop", "text", "reason"),
    [
        ("12 + 1<|im_end|>", (), "12 + 1", "stop"),
        ("12 + 1", (), "12 + 1", "length"),
        ("12 + 1", (" 1", " +"), "12", "stop"),
        ("12 + 1<|im_end|>", ("3",), "12 + 1", "stop"),
    ],
)
def test_a_turn_is_its_text_without_end_marker_and_what_follows_a_stop(
    written: str, stop: tuple[str, ...], text: str, reason: str
) -> None:
    ids = renderer.tokenizer(written, add_special_tokens=False)["input_ids"]
    turn = turn_of(
        ids, [0.0] * len(ids), renderer, Sampling(stop=stop), prompt_tokens=9, seconds=0.5
    )
    assert (turn.text, turn.finish_reason) == (text, reason)
    assert (turn.token_ids, turn.completion_tokens) == (tuple(ids), len(ids))
