"""What a model writes becomes JSON, whatever it is."""

import json
from dataclasses import dataclass

import pytest

from toolwise.json_encoding import encode_json


@dataclass(frozen=True, slots=True)
class Said:
    text: str
    parts: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize("text", ["plain", "größer", "\ud83d", "a\udcffb"])
def test_text_comes_back_as_it_was_half_a_surrogate_pair_too(text: str) -> None:
    value = {"one": Said(text), "all": [text, None, 1.5]}
    expected = {"one": {"text": text, "parts": [1, 2]}, "all": [text, None, 1.5]}
    assert json.loads(encode_json(value)) == expected


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        encode_json({"one": object()})
