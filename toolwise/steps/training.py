"""Training steps: checked against the machines before they start, here or on a cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolwise.steps.alarm import TrainingLog
from toolwise.steps.fitting import SETTINGS, needs
from toolwise.steps.lineage import STAGES
from toolwise.steps.running import Step
from toolwise.training.kept import kept_address, kept_checkpoints, kept_folder

if TYPE_CHECKING:
    from toolwise.training.launcher.cluster import Cluster
    from toolwise.training.launcher.following import TrainJobs

Outputs = dict[str, Path]
"""Where each output of a step stands, by name."""

Work = Callable[[Step], Outputs]


def training(work: Work) -> Work:
    """Have a training step say what it needs, refuse what cannot fit, and find its place.

    Where the step's pod is told of a cluster, the work is a `TrainJob`'s; everywhere else it is
    done right here.
    """

    @wraps(work)
    def placed(step: Step) -> Outputs:
        from rich.console import Console

        from toolwise.training.launcher.cluster import Cluster
        from toolwise.training.launcher.estimate import check
        from toolwise.training.launcher.estimate_table import print_estimate

        cluster = Cluster.of_environment()
        estimate = needs(step, cluster)
        print_estimate(estimate, Console(width=120))
        check(estimate)
        if cluster:
            return train_on_cluster(step, cluster)
        outputs = work(step)
        log_kept(step, kept_folder(outputs["checkpoint"]))
        return outputs

    return placed


def train_on_cluster(step: Step, cluster: Cluster, jobs: TrainJobs | None = None) -> Outputs:
    """Do the step in the pods of a `TrainJob`: start it, follow it, and fetch the checkpoint.

    A step that is cut off and run again follows the `TrainJob` it had started. One that is told to
    stop deletes it. A vLLM server beside it would keep its GPUs after the end, so such a `TrainJob`
    is deleted, and the server with it.

    Raises:
        BackendError: the cluster refused or lost the `TrainJob`, or the training failed there.
    """
    from toolwise.storage import local_copy
    from toolwise.training.launcher.following import TrainJobLost, TrainJobs
    from toolwise.training.launcher.trainjob import NodeWork, job_name, train_job
    from toolwise.training.launcher.vllm_servers import server_address, server_objects

    jobs = jobs or TrainJobs()
    settings = step.settings_as(SETTINGS[step.label])
    hardware = settings.hardware
    assert hardware is not None
    inputs = {name: _hand_over(path, cluster.exchange) for name, path in step.inputs.items()}
    identity = {"settings": step.settings, "seed": step.seed, "inputs": inputs}
    name = job_name(step.label, identity | {"cluster": cluster.model_dump(mode="json")})
    work = NodeWork(
        step=step.label,
        settings=step.settings,
        seed=step.seed,
        inputs=inputs,
        output=f"{cluster.exchange}/outputs/{name}",
    )
    beside = step.label == "train-hdpo" and hardware.vllm == "server"
    job = train_job(
        name,
        work,
        settings.processes,
        hardware,
        cluster,
        server_address(name) if beside else None,
    )
    with _cancelled_with_us(jobs, name):
        started = jobs.start(job)
        print(f"TrainJob {name} in namespace {jobs.namespace}", flush=True)
        if beside:
            jobs.put(*server_objects(name, started, inputs["model"], hardware, cluster))
        log = TrainingLog(step.run)
        try:
            jobs.follow(name, lambda line: _hear(step, log, line))
        except TrainJobLost:
            if beside:
                jobs.cancel(name)
            raise
    if settings.keep_checkpoints > 1 and settings.steps > settings.checkpoint_every:
        address = kept_address(work.output)
        log_kept(step, local_copy(address), address)
    checkpoint = local_copy(work.output)
    if beside:
        jobs.cancel(name)
    return {"checkpoint": checkpoint}


def log_kept(step: Step, folder: Path, address: str = "") -> None:
    """Log the checkpoints in a folder of kept ones, which stands at `address` if not here."""
    for kept in kept_checkpoints(folder):
        at = f"{address}/{kept.folder.name}" if address else ""
        step.run.writes_model(kept.folder, STAGES[step.label], step=kept.step, address=at)


def _hear(step: Step, log: TrainingLog, line: str) -> None:
    """Pass on what the first process of a `TrainJob` says."""
    from toolwise.steps.node import word_in

    word = word_in(line)
    if word is None:
        print(line, flush=True)
        return
    if word.metrics:
        log(word.metrics, word.step)
    else:
        step.events.progress(word.done, word.total, word.note)


def _hand_over(path: Path, exchange: str) -> str:
    """Put an input where the `TrainJob` finds it; the same content at the same address."""
    from toolwise.storage import content_digest, publish

    address = f"{exchange}/inputs/{content_digest(path)[:16]}/{path.name}"
    publish(path, address)
    return address


@contextmanager
def _cancelled_with_us(jobs: TrainJobs, name: str) -> Iterator[None]:
    """Delete the `TrainJob` when this process is told to stop: nobody would follow it."""

    def stop(*_: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        jobs.cancel(name)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
