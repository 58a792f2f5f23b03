"""What processes of a group do in tests of the launcher."""

import os
import signal
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather

from toolwise.errors import InputError


def report_ranks(folder: Path, log=None, progress=None) -> None:
    """Every rank writes what it gathered of all; the first also reports."""
    state = PartialState(cpu=True)
    ranks = gather(torch.tensor([state.process_index])).tolist()
    (folder / f"{state.process_index}").write_text(str(ranks))
    if log:
        log({"processes": float(state.num_processes)}, 7)
    if progress:
        progress(1, 2, "half")


def say_gpus(folder: Path, log=None, progress=None) -> None:
    """Write which GPUs are to be seen."""
    state = PartialState(cpu=True)
    (folder / f"{state.process_index}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])


def look_for(path: Path, log=None, progress=None) -> None:
    """Fails where there is no such file."""
    path.stat()


def refuse(log=None, progress=None) -> None:
    """The second process finds its input wrong, while the first waits for it."""
    state = PartialState(cpu=True)
    if state.process_index == 1:
        raise InputError("row 3 is empty")
    gather(torch.zeros(1))


def be_killed(log=None, progress=None) -> None:
    """The second process is killed, while the first waits for it."""
    state = PartialState(cpu=True)
    if state.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gather(torch.zeros(1))


def crash(log=None, progress=None) -> None:
    """The second process runs into a fault of the code."""
    state = PartialState(cpu=True)
    if state.process_index == 1:
        raise KeyError("no such thing")
    gather(torch.zeros(1))


def wait_for_ever(folder: Path, log=None, progress=None) -> None:
    """Say who is there, then train for ever."""
    (folder / str(os.getpid())).touch()
    progress and progress(0, 0, "training")
    signal.pause()
