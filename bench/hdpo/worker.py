"""A process of the study: `python -m bench.hdpo.worker start|arms SCALE [START]`."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence

import torch
from transformers.utils import logging

from bench.hdpo.checkpoints import Material, cold_start, material
from bench.hdpo.measuring import close
from bench.hdpo.remembering import open_remembering
from bench.hdpo.scale import Scale
from bench.hdpo.study import Job, jobs
from bench.hdpo.training import train_arm
from toolwise.storage import atomic_file
from toolwise.tools import Tool


def work(scale: Scale) -> None:
    """Do the jobs that are neither done nor being done by another worker, until none is left."""
    made, parent = material(scale), os.getppid()
    tools = open_remembering(made.corpus)
    try:
        for job in jobs(scale):
            if os.getppid() != parent:  # whoever started this is gone
                return
            with job.path.with_suffix(".lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if not job.path.exists():
                    _do(job, scale, made, tools)
    finally:
        asyncio.run(close(tools))


def _do(job: Job, scale: Scale, made: Material, tools: Sequence[Tool]) -> None:
    started, used = time.perf_counter(), time.process_time()
    record = train_arm(job.arm, job.seed, made, tools, scale)
    record["seconds"] = time.perf_counter() - started
    record["cpu_seconds"] = time.process_time() - used
    with atomic_file(job.path) as file:
        file.write_text(json.dumps(record))
    print(f"{job.arm.label}, seed {job.seed}: {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    size = Scale.model_validate_json(sys.argv[2])
    if sys.argv[1] == "start":
        cold_start(material(size), sys.argv[3], size)  # type: ignore[arg-type]
    else:
        work(size)
