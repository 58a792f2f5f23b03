"""Training on several processes of one machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import group_work
import pytest

from toolwise.errors import BackendError, InputError
from toolwise.profile import BaseModelSettings
from toolwise.steps.functions import base_model, train_hdpo, train_sft
from toolwise.steps.running import Step
from toolwise.synthetic.settings import BaseStageSettings
from toolwise.training.hardware import HardwareSettings
from toolwise.training.launcher import launch
from toolwise.training.settings import HdpoSettings, SftSettings


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


SLOW_TO_JOIN = """
import os
if os.environ.get("RANK") == "1":
    import pathlib, time
    from torch import distributed
    join = distributed.init_process_group

    def slowly(*given, **more):
        join(*given, **more)
        time.sleep(2)
        pathlib.Path({joined!r}).touch()

    distributed.init_process_group = slowly
"""
"""What Python runs at its start: the second process takes its time."""


def test_none_begins_and_so_none_ends_before_all_have_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = tmp_path / "joined"
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_JOIN.format(joined=str(joined)))
    monkeypatch.syspath_prepend(tmp_path)
    launch("group_work:look_for", 2, path=joined)


@pytest.mark.parametrize(("gpus", "seen"), [(True, "0,1"), (False, "")])
def test_processes_that_are_to_work_on_cores_see_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: bool, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    launch("group_work:say_gpus", 2, gpus=gpus, folder=tmp_path)
    assert [p.read_text() for p in tmp_path.iterdir()] == [seen, seen]


@pytest.mark.parametrize("label", ["base", "train-sft", "train-hdpo"])
@pytest.mark.parametrize("hardware", [None, HardwareSettings(gpu="h100-80gb")])
def test_steps_train_on_gpus_where_the_profile_has_hardware_and_the_base_never(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label: str,
    hardware: HardwareSettings | None,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        "toolwise.training.launcher.launch", lambda *_, **more: told.append(more.get("gpus", False))
    )
    settings, work = {
        "base": (BaseModelSettings(train=BaseStageSettings()), base_model),
        "train-sft": (SftSettings(hardware=hardware), train_sft),
        "train-hdpo": (HdpoSettings(hardware=hardware), train_hdpo),
    }[label]
    inputs = dict.fromkeys(("model", "curated", "corpus"), tmp_path)
    said: Any = SimpleNamespace(log=print, progress=print)
    work(Step(label, settings.model_dump_json(), 0, inputs, tmp_path, said, said))
    assert told == [hardware is not None and label != "base"]


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


def test_siblings_of_a_node_take_nothing_until_its_first_process_has_looked(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GLOO_SOCKET_IFNAME": "lo",
        # As Trainer sets them.
        "PET_NPROC_PER_NODE": "2",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    script = Path(__file__).with_name("node_siblings.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    subprocess.run([*torchrun, script, tmp_path], check=True, env=environment, timeout=600)
    assert (tmp_path / "first").read_text() == "the sibling went on: False"
    assert (tmp_path / "sibling").exists()
