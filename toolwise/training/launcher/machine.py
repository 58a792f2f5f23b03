"""What this machine has: GPUs with memory that is free, and main memory that may be taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolwise.errors import InputError
from toolwise.training.settings import HdpoSettings, SftSettings

_CGROUP = Path("/sys/fs/cgroup")
_FREE_MEMORY = """
import json, torch
print(json.dumps([torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]))
"""


def gpu_memory(settings: SftSettings | HdpoSettings) -> float | None:
    """Free bytes of the fullest GPU that the step's processes on this machine will use.

    None where Accelerate is told to train on the CPU (`ACCELERATE_USE_CPU`).

    Raises:
        InputError: there are fewer GPUs than processes.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return None
    hardware = settings.hardware
    assert hardware is not None
    count = torch.cuda.device_count()
    if count < settings.processes:
        raise InputError(
            f"the profile trains on {settings.processes} × {hardware.gpu} and this machine has "
            f"{count or 'no'} GPUs: take another profile, or submit this one to a cluster"
        )
    return min(free_gpu_memory()[: settings.processes])


def free_gpu_memory() -> list[float]:
    """Free bytes of each GPU of this machine, as a process that trains would find them.

    A process of its own looks: a context, which the look-up leaves on every GPU, ends with it.
    """
    look = [sys.executable, "-c", _FREE_MEMORY]
    return json.loads(subprocess.run(look, check=True, stdout=subprocess.PIPE).stdout)


def available_memory(cgroup: Path = _CGROUP) -> float:
    """Bytes of main memory this process may still take: the machine's, or its container's.

    Args:
        cgroup: folder of the control group (version 2) that limits the container.
    """
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = float(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return free
    # Cached files count towards the limit, and are dropped where memory is asked for.
    return free if limit == "max" else min(free, float(limit) - float(used["anon"]))


_met_at: list[Any] = []
"""Kept to the end: where `torchrun` has no store itself, the first process of all serves one."""


def first_of_node_first(act: Callable[[], None]) -> None:
    """Have the first process of each node act, while the others of its node wait until it has.

    They meet at the store where they will form their group: to form it would take of the GPUs.
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
    if first:
        act()
    if alone:
        return
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    _met_at.append(store)
    done = f"toolwise/node-{os.environ.get('GROUP_RANK', '0')}"
    if first:
        store.set(done, "")
    else:
        store.wait([done])
