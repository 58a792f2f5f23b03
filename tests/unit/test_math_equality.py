"""Equality of mathematical answers, asked of math-verify in a bounded child process."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from toolwise.data import AnswerType, Task, grade, math_equality
from toolwise.data.math_equality import LONGEST, math_equal, math_value
from toolwise.errors import BackendError

ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A child of its own, with half a second a question."""
    monkeypatch.setattr(math_equality, "CPU_SECONDS", 0.5)
    math_equality._child.cache_clear()
    yield
    math_equality._child.cache_clear()


@pytest.mark.parametrize(
    ("accepted", "answer"),
    [
        ("12", "12.0"),
        ("0.5", r"\frac{1}{2}"),
        ("17/264", r"$\dfrac{17}{264}$"),
        ("50%", "0.5"),
        ("1,000", "1000"),
        ("3", r"\boxed{3}"),
        ("60°", r"60^\circ"),
        ("2√{3}", r"2\sqrt{3}"),
        ("√3", r"\sqrt{3}"),
        ("2π", r"2\pi"),
        ("(-4,1]", "(-4, 1]"),
        ("y=-2x+1", "y = 1 - 2x"),
        ("f(x)=x^2", "x^2"),
        ("5.5 cm", "5.5"),
        ("14", "The answer is 14"),
        ("1500", "1.5e3"),
        ("0.01", "10^-2"),
        ("316000", r"3.16 × 10^5"),
    ],
)
def test_equal_answers_are_equal_however_written(accepted: str, answer: str):
    assert math_equal(accepted, answer)


@pytest.mark.parametrize(
    ("accepted", "answer"),
    [
        ("14", "15"),
        ("4", "-4"),
        ("0.5", "0.51"),
        ("(-4,1]", "(-4, 1)"),
        ("y=-2x+1", "y = 2x+1"),
        (r"2\sqrt{3}", r"3\sqrt{2}"),
        ("14", "I cannot tell"),
        ("14", ""),
    ],
)
def test_other_answers_are_not(accepted: str, answer: str):
    assert not math_equal(accepted, answer)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2π", 6.28318530718),
        (r"$\frac{3\pi}{2}$", 4.71238898038),
        (r"\sqrt{2}", 1.41421356237),
        ("1/3", 0.33333333333),
        ("x = 1/4", 0.25),
        ("2.5e-1", 0.25),
    ],
)
def test_a_number_is_worth_what_it_says(text: str, value: float):
    assert math_value(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "(1, 2)", "x + 1", "i^{2} + i", "1/0", "nothing", "1" * 9999])
def test_what_is_no_real_number_has_no_value(text: str):
    assert math_value(text) is None


def test_an_endless_computation_is_a_wrong_answer_and_the_next_question_is_answered(
    short_limit: None,
):
    before = time.process_time()
    assert not math_equal("3", ENDLESS)
    assert math_equality._child()._process is None  # the kernel ended it
    assert math_value(ENDLESS) is None
    assert math_equal("3", "3.0")
    assert time.process_time() - before < 5  # nothing is computed in this process


def test_a_child_killed_from_outside_is_replaced_and_the_answer_still_right(short_limit: None):
    assert math_equal("3", "3.0")
    process = math_equality._child()._process
    assert process is not None
    process.kill()
    process.wait()
    assert math_equal("4", "4.0")


def test_threads_take_turns():
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: math_equal(str(n % 5), f"{n}.0"), range(40)))
    assert found == [n < 5 for n in range(40)]


FORKED = """
import os
from toolwise.data.math_equality import _child, math_equal

assert math_equal("3", "3.0")
if (pid := os.fork()) == 0:
    os._exit(0 if _child()._process is None and math_equal("4", "4.0") else 1)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_forked_process_has_a_child_of_its_own():
    # Not forked from here: threads of other tests may hold locks that a fork would keep for ever.
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


def test_an_answer_of_endless_length_is_not_read():
    assert not math_equal("1", "1" + " " * LONGEST)


def test_a_child_that_cannot_start_is_an_infrastructure_error(
    monkeypatch: pytest.MonkeyPatch, short_limit: None
):
    monkeypatch.setattr(math_equality, "CPU_SECONDS", "no number")
    with pytest.raises(BackendError, match="ended as it started"):
        math_equal("1", "2")


def test_grading_takes_the_same_words_as_right_without_any_mathematics():
    task = Task("t", "test", "math", "?", ("undefined", "1/2"), answer_type=AnswerType.MATH)
    assert grade(task, " Undefined. ")
    assert grade(task, "0.5")
    assert not grade(task, "0.4")
    assert not grade(task, None)
