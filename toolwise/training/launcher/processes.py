"""A training function on several processes of this machine, which share the work of every step.

The processes form a group by the environment variables that `torchrun` sets (`RANK`, `WORLD_SIZE`,
`MASTER_ADDR`, …): NCCL where there are GPUs, one for each process, Gloo where there are none.
"""

from __future__ import annotations

import os
import pkgutil
import threading
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from toolwise.child_process import child_process, free_port
from toolwise.errors import BackendError, ToolwiseError
from toolwise.progress import Log, Progress


def launch(
    function: str,
    processes: int,
    *,
    gpus: bool = False,
    log: Log | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> None:
    """Call a training function, here or on several processes of this machine at once.

    In a process that is one of a group already (started by `torchrun` or a `TrainJob`), or where
    one is asked for, the function runs right here.

    Args:
        function: `package.module:function`; it takes `log` and `progress` beside `arguments`.
        processes: how many share the work.
        gpus: each of several has one of its own; without, they see none, whatever this machine has.
        log: gets each step's metrics, once.
        progress: gets each step, once.
        arguments: picklable.

    Raises:
        ToolwiseError: as the function raises it.
        BackendError: a process died; the training can be taken up again.
    """
    grouped = "RANK" in os.environ
    if grouped:
        _form_group()
    if grouped or processes == 1:
        pkgutil.resolve_name(function)(**arguments, log=log, progress=progress)
        return
    port = free_port()
    with ExitStack() as stack:
        group: dict[Connection, int] = {}
        for rank in range(processes):
            connection = stack.enter_context(
                child_process(f"{__name__}:main", _environment(rank, processes, port, gpus))
            )
            connection.send(_Job(function, arguments))
            group[connection] = rank
        _follow(group, log, progress)


@dataclass(frozen=True, slots=True)
class _Job:
    function: str
    arguments: Mapping[str, Any]


class _Logged(NamedTuple):
    metrics: dict[str, float]
    step: int


class _Progressed(NamedTuple):
    done: int
    total: int
    note: str


class _Crashed(NamedTuple):
    trace: str


class _Finished(NamedTuple):
    pass


def _environment(rank: int, processes: int, port: int, gpus: bool) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    hidden = {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return hidden | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # Gloo would look up the host's name, which need not lead anywhere.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _follow(group: Mapping[Connection, int], log: Log | None, progress: Progress | None) -> None:
    """Pass on what the processes say until all have finished; raise what ended one of them."""
    running: dict[Any, int] = dict(group)
    while running:
        ready = [connection for connection in wait(list(running)) if connection in running]
        words = [(running[connection], _word(connection), connection) for connection in ready]
        # One that died takes the others with it: its end explains theirs.
        for rank, word, connection in sorted(words, key=lambda entry: _tells_little(entry[1])):
            match word:
                case _Logged(metrics, step):
                    if log:
                        log(metrics, step)
                case _Progressed(done, total, note):
                    if progress:
                        progress(done, total, note)
                case _Finished():
                    del running[connection]
                case ToolwiseError():
                    raise word
                case _Crashed(trace):
                    del running[connection]
                    raise _first_cause(running) or RuntimeError(
                        f"training process {rank} failed:\n{trace}"
                    )
                case None:
                    raise _died(rank)


def _word(connection: Any) -> Any:
    """What a process says next; None from one that is gone."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        return None


def _tells_little(word: Any) -> int:
    return isinstance(word, _Crashed)


def _first_cause(others: Mapping[Connection, int]) -> Exception | None:
    """Why another process ended, if one did: a crash may only be its lost connection to that."""
    for connection in wait(list(others), timeout=5):
        assert isinstance(connection, Connection)
        while connection.poll():
            word = _word(connection)
            if word is None:
                return _died(others[connection])
            if isinstance(word, ToolwiseError):
                return word
            if isinstance(word, _Crashed):
                break
    return None


def _died(rank: int) -> BackendError:
    return BackendError(
        f"training process {rank} died (killed, or out of memory); run the step again, it goes on "
        "from its last checkpoint"
    )


def main(handle: int) -> None:
    """Be one of the processes: the parent at the connection `handle` says what to call."""
    with Connection(handle) as connection:
        job: _Job = connection.recv()
        threading.Thread(target=_end_with, args=[connection], daemon=True).start()
        first = os.environ["RANK"] == "0"
        try:
            _form_group()
            pkgutil.resolve_name(job.function)(
                **job.arguments,
                log=(lambda metrics, step: connection.send(_Logged(metrics, step)))
                if first
                else None,
                progress=(lambda *word: connection.send(_Progressed(*word))) if first else None,
            )
        except ToolwiseError as error:
            connection.send(error)
        except Exception:
            connection.send(_Crashed(traceback.format_exc()))
        else:
            connection.send(_Finished())
    # Threads of the collectives may wait for processes that are gone.
    os._exit(0)


def _form_group() -> None:
    """Join the others; what uses Accelerate from here on is part of the group."""
    import torch
    from accelerate import PartialState

    # One that is done before another has joined would take the group's store with it.
    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def _end_with(parent: Connection) -> None:
    """End this process when the connection does: whoever started the training is gone."""
    try:
        parent.recv()
    except (EOFError, OSError):
        os._exit(1)
