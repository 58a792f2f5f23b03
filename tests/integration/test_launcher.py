"""Training on several processes of one machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import group_work
import pytest

from toolwise.errors import BackendError, InputError
from toolwise.training.launcher import launch


def test_the_processes_form_one_group_and_report_once(tmp_path: Path) -> None:
    logged, progressed = [], []

    launch(
        "group_work:report_ranks",
        2,
        folder=tmp_path,
        log=lambda *word: logged.append(word),
        progress=lambda *word: progressed.append(word),
    )

    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"0": "[0, 1]", "1": "[0, 1]"}
    assert logged == [({"processes": 2.0}, 7)]
    assert progressed == [(1, 2, "half")]


def test_an_error_of_one_process_is_raised_as_it_is() -> None:
    with pytest.raises(InputError, match="row 3 is empty"):
        launch("group_work:refuse", 2)


def test_a_process_that_is_killed_is_named() -> None:
    with pytest.raises(BackendError, match=r"training process 1 died .* goes on from its last"):
        launch("group_work:be_killed", 2)


def test_a_crash_shows_its_trace() -> None:
    with pytest.raises(RuntimeError, match=r"training process 1 failed:(.|\n)*no such thing"):
        launch("group_work:crash", 2)


def test_one_process_works_right_here(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(group_work, "crash", lambda **given: seen.append(given))

    launch("group_work:crash", 1, folder=3)

    assert seen == [{"folder": 3, "log": None, "progress": None}]


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from toolwise.training.launcher import launch; "
        "launch('group_work:wait_for_ever', 2, folder=Path(sys.argv[1]), "
        "progress=lambda *_: print('up', flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    deadline = time.monotonic() + 30
    while len(pids := [int(p.name) for p in tmp_path.iterdir()]) < 2:
        assert time.monotonic() < deadline

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
