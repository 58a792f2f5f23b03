"""What this machine has: GPUs with memory that is free, and main memory that may be taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def is_first_of_node() -> bool:
    """Whether this process speaks for the others on its machine, by what `torchrun` tells it."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
