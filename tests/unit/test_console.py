"""The board says where every step stands, and what is left."""

import io

import pytest
from rich.console import Console

from toolwise.console import LineDisplay, RunBoard, clock_time
from toolwise.events import Event


def shown(board: RunBoard) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(board)
    return console.file.getvalue()  # type: ignore[attr-defined]


def event(step: str, state: str, at: float = 0.0, **details) -> Event:
    return Event.model_validate({"step": step, "state": state, "at": at, **details})


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "7s"), (185, "3m05s"), (7440, "2h04m"), (-1, "0s")]
)
def test_clock_time(seconds: float, text: str):
    assert clock_time(seconds) == text


def test_a_running_step_shows_progress_and_an_estimate_from_its_pace():
    board = RunBoard.of(["train-sft"])
    board.clock = lambda: 130.0
    board.take(event("train-sft", "started", at=100.0))
    board.take(event("train-sft", "progress", at=130.0, done=60, total=240, note="loss 0.4"))
    text = shown(board)
    assert "60/240" in text
    assert "about 1m30s left" in text  # 30 s for a quarter
    assert "loss 0.4" in text


def test_no_estimate_before_there_is_a_pace():
    board = RunBoard.of(["train-sft"])
    board.take(event("train-sft", "started", at=100.0))
    assert board.rows[0].remaining(200.0) is None
    board.take(event("train-sft", "progress", done=5, total=0))
    assert board.rows[0].remaining(200.0) is None


def test_states_are_told_apart():
    board = RunBoard.of(["prepare-data", "base-model", "promote", "deploy"])
    board.take(event("prepare-data", "reused"))
    board.take(event("base-model", "started", at=1.0))
    board.take(event("base-model", "failed", at=3.0, note="out of luck\nsecond line"))
    board.take(event("promote", "started", at=1.0))
    board.take(event("promote", "finished", at=5.0, seconds=4.0))
    board.close()
    lines = [line.split() for line in shown(board).splitlines()]
    assert lines[0][-1] == "re-used"
    assert lines[1] == ["✗", "base-model", "2s", "out", "of", "luck"]
    assert lines[2] == ["✓", "promote", "4s"]
    assert lines[3] == ["–", "deploy", "not", "run"]


def test_a_log_gets_one_line_per_start_and_end_and_none_for_progress():
    out = io.StringIO()
    board = RunBoard.of(["evaluate sft"])
    with LineDisplay(Console(file=out, width=40)) as display:
        for e in (
            event("evaluate sft", "started", at=10.0),
            event("evaluate sft", "progress", at=11.0, done=1, total=2),
            event("evaluate sft", "finished", at=72.0, seconds=62.0),
        ):
            display.changed(e, board.take(e))
    assert out.getvalue() == "evaluate sft: started\nevaluate sft: done in 1m02s\n"
