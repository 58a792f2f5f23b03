"""The answer is told as soon as it is certain, and adds up to what the whole turn says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolwise.agent import Rollout, extract_answer
from toolwise.data import Task
from toolwise.serving.answers import AnswerReader, answer_text


def told(*pieces: str) -> list[str]:
    reader = AnswerReader()
    return [reader.read(piece) for piece in pieces]


def test_each_piece_of_the_answer_is_told_at_once() -> None:
    pieces = ["<reason>6 ", "x 7</reason><ans", "wer> 4", "2 is", " it ", "</answer> bye"]
    assert told(*pieces) == ["", "", "4", "2 is", " it", ""]


def test_what_may_be_the_closing_tag_is_held_back_until_it_is_not() -> None:
    assert told("<answer>a </", "b </answ", "er></answer>") == ["a", " </b", ""]


def test_a_turn_without_the_tag_has_no_answer() -> None:
    reader = AnswerReader()
    assert reader.read("It is four.") == ""
    assert not reader.found


WORDS = st.sampled_from(["<answer>", "</answer>", "</ans", "<", " ", "\n", "4", "ab", "</", "é"])


@given(st.lists(WORDS, max_size=12), st.data())
def test_pieces_add_up_to_the_answer_however_the_turn_is_cut(
    words: list[str], data: st.DataObject
) -> None:
    turn = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(turn)), max_size=6)))
    ends = [*cuts, len(turn)]
    pieces = [turn[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
    answer = extract_answer(turn)
    if answer is not None:
        assert "".join(told(*pieces)) == answer
    assert "".join(told(*pieces)) == told(turn)[0]


@pytest.mark.parametrize(
    ("turn", "content"),
    [
        ("<reason>x</reason> <answer> 42 </answer>", "42"),
        ("It is four.", "It is four."),
        ("<reason>x</reason><answer>42, or", "42, or"),
        ("<answer>1</answer><answer>2</answer>", "1"),
        ("<answer></answer>", ""),
    ],
)
def test_the_content_of_a_reply_is_what_its_stream_adds_up_to(turn: str, content: str) -> None:
    task = Task("t", "t", "t", "?", ())
    rollout = Rollout(task, [{"role": "assistant", "content": turn}], answer=extract_answer(turn))
    assert answer_text(rollout) == content
