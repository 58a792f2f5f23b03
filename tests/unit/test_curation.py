import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolwise.agent import CallRecord, Rollout, user_message
from toolwise.curation.reexecution import same_image, same_text
from toolwise.curation.rl_filters import check_images, check_question, conflicting_questions
from toolwise.curation.rollout_search import judge_group
from toolwise.curation.rule_judge import judge_by_rules
from toolwise.curation.samples import kind_of
from toolwise.curation.sft import check_answer, check_form
from toolwise.curation.verdicts import Verdict, VerdictLog
from toolwise.data import AnswerType, Message, Task, Trajectory, encode_image
from toolwise.tools import ToolResult

SUM = Task(id="t", source="s", ability="math", question="What is 347+586?", answer=("933",))


def noise(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)


def trajectory(task: Task, *steps: tuple[str, dict[str, Any], Any], answer: str) -> Trajectory:
    """Steps are (tool, arguments, result); the result is text or an image."""
    messages: list[Message] = [user_message(task)]
    for number, (name, arguments, result) in enumerate(steps):
        call = {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        part = {"type": "text", "text": result}
        if isinstance(result, bytes):
            part = {"type": "image", "image": result}
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": [part]})
    messages.append({"role": "assistant", "content": answer})
    return Trajectory(task, tuple(messages))


def code(text: str, result: Any) -> tuple[str, dict[str, Any], Any]:
    return "python", {"code": text}, result


# --- comparing recorded and recomputed results -----------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "computed", "same"),
    [
        ("933", "933\n", True),
        ("a  b\nc", "a b c", True),
        ("0.30000000000000004", "0.3", True),
        ("1e-3", "0.001", True),
        ("933", "934", False),
        ("0.3001", "0.3", False),
        ("x 1", "y 1", False),
        ("1 2", "1", False),
        ("-5", "5", False),
        ("Paris", "paris", False),
    ],
)
def test_text_is_the_same_up_to_white_space_and_last_digits(
    recorded: str, computed: str, same: bool
) -> None:
    assert same_text(recorded, computed) is same


def test_images_are_the_same_by_size_and_content() -> None:
    picture = noise()
    assert same_image(encode_image(picture), encode_image(picture))
    assert not same_image(encode_image(picture.resize((32, 24))), encode_image(picture))
    assert not same_image(encode_image(noise(1)), encode_image(picture))
    touched = picture.copy()
    touched.paste((255, 0, 255), (10, 10, 13, 13))
    assert not same_image(encode_image(touched), encode_image(picture))
    assert not same_image(b"no image", encode_image(picture))


def test_a_jpeg_recording_may_lose_what_jpeg_loses_but_not_show_something_else() -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG", quality=75)
    assert same_image(buffer.getvalue(), encode_image(noise()))
    assert not same_image(buffer.getvalue(), encode_image(noise(1)))


# --- the rule judge --------------------------------------------------------------------------


def test_a_call_that_was_used_is_kept() -> None:
    kept = [
        trajectory(SUM, code("print(347+586)", "933"), answer="<answer>933</answer>"),
        trajectory(SUM, code("show(image.crop((0,0,1,1)))", b"png"), answer="<answer>1</answer>"),
        trajectory(
            SUM,
            ("text_search", {"query": "sum"}, "The sum is 933.0 in all."),
            answer="<answer>933</answer>",
        ),
        trajectory(
            SUM,
            code("print(300+500)", "800"),
            code("print(800+47+86)", "933"),
            answer="<answer>933</answer>",
        ),
        trajectory(
            replace(SUM, answer_type=AnswerType.CHOICE, choices=("1", "933"), answer=("B",)),
            code("print(347+586)", "933"),
            answer="<answer>B</answer>",
        ),
    ]
    assert [judge_by_rules(t).reason for t in kept] == [""] * len(kept)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([code("print('checking')", "checking")], "the code computes nothing"),
        ([code("x = 933\nprint(f'{x}')", "933")], "the code computes nothing"),
        ([code("show(image)", b"png")], "the code computes nothing"),
        ([code("show(images[0])", b"png")], "the code computes nothing"),
        ([code("print(347+586)", "933")] * 2, "repeats a call"),
        ([code("image.load()", "")], "the last call gives nothing"),
        ([code("print(2*3)", "6")], "the result is not used"),
        ([("text_search", {"query": "q"}, "What is the sea?")], "the result is not used"),
    ],
)
def test_a_call_for_show_is_dropped(steps: list[Any], reason: str) -> None:
    verdict = judge_by_rules(trajectory(SUM, *steps, answer="<answer>933</answer>"))
    assert verdict == Verdict(False, reason)


# --- form and answer -------------------------------------------------------------------------


def test_only_one_right_final_answer_passes() -> None:
    direct = trajectory(SUM, answer="<answer>933</answer>")
    assert check_form(direct).keep
    assert check_answer(direct).keep
    wrong = trajectory(SUM, answer="<answer>932</answer>")
    assert check_answer(wrong).reason == "wrong answer"
    assert check_answer(replace(wrong, task=replace(SUM, answer_type=AnswerType.OPEN))).keep
    for answer in ("933", "<answer>1</answer><answer>933</answer>"):
        assert check_form(trajectory(SUM, answer=answer)).reason == "no final answer"
    assert check_form(Trajectory(SUM, ())).reason == "no final answer"


def test_corrupt_images_and_calls_without_tools_are_dropped() -> None:
    corrupt = replace(SUM, images=(encode_image(noise())[:60],))
    verdict = check_form(trajectory(corrupt, answer="<answer>933</answer>"))
    assert kind_of(verdict) == "corrupt image"
    bare = replace(SUM, metadata={"tools": "none"})
    called = trajectory(bare, code("print(1+1)", "2"), answer="<answer>933</answer>")
    assert check_form(called).reason == "calls a tool where none was offered"


# --- prompts ---------------------------------------------------------------------------------


def test_images_that_are_corrupt_or_absent_drop_a_prompt() -> None:
    picture = encode_image(noise())
    assert check_images(replace(SUM, images=(picture,))).keep
    assert check_images(SUM).keep
    assert not check_images(replace(SUM, images=(picture[:60],))).keep
    assert not check_images(replace(SUM, question="<image> How many?")).keep
    assert check_images(replace(SUM, question="<image> How many?", images=(picture,))).keep
    assert not check_images(replace(SUM, question="What is in this picture?")).keep
    assert check_images(replace(SUM, question="Who painted the first picture?")).keep


def test_a_question_with_different_answers_is_ambiguous_unless_its_pictures_differ() -> None:
    picture, other = encode_image(noise()), encode_image(noise(1))
    tasks = [
        replace(SUM, question="Which number?", images=(picture,), answer=("4",)),
        replace(SUM, question="which  number", images=(picture,), answer=("5",)),
        replace(SUM, question="Which number?", images=(other,), answer=("6",)),
        replace(SUM, question="Which?", answer=("4", "four")),
        replace(SUM, question="Which?", answer=("Four",)),
        replace(SUM, question="  "),
        replace(SUM, answer=("", " ")),
    ]
    conflicting = conflicting_questions(tasks)
    verdicts = [check_question(task, conflicting) for task in tasks]
    assert [v.keep for v in verdicts] == [False, False, True, True, True, False, False]
    assert verdicts[0].reason.startswith("ambiguous")


def group(*attempts: tuple[bool, int]) -> list[Rollout]:
    call = CallRecord("python", {}, ToolResult(""))
    return [
        Rollout(SUM, [], calls=[call] * calls, answer="933" if right else "0")
        for right, calls in attempts
    ]


@pytest.mark.parametrize(
    ("attempts", "either", "pass_rate"),
    [
        ([(True, 1), (False, 1)], True, True),
        ([(True, 1), (True, 0)], True, False),
        ([(True, 1), (True, 1)], False, False),
        ([(False, 1), (False, 0)], False, False),
    ],
)
def test_the_keep_rules_differ_on_groups_that_are_right_at_different_cost(
    attempts: list[tuple[bool, int]], either: bool, pass_rate: bool
) -> None:
    assert judge_group(group(*attempts), "either").keep is either
    assert judge_group(group(*attempts), "pass_rate").keep is pass_rate


# --- verdicts on disk ------------------------------------------------------------------------


def test_verdicts_survive_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "filter.jsonl"
    log = VerdictLog(path)
    log.record({3: Verdict(True, detail={"right": 2.0}), 1: Verdict(False, "wrong")}, seconds=1.5)
    log.record({4: Verdict(True)}, seconds=1.0)
    torn = path.read_bytes()[:-8]
    path.write_bytes(torn)

    again = VerdictLog(path)
    assert dict(again.items()) == {
        1: Verdict(False, "wrong"),
        3: Verdict(True, detail={"right": 2.0}),
    }
    again.record({4: Verdict(False, "late")}, seconds=0.5)
    final = VerdictLog(path)
    assert final[4] == Verdict(False, "late")
    assert final.seconds == 2.0
    assert all(json.loads(line) for line in path.read_text().splitlines())
