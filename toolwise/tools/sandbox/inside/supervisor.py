"""First process of a sandbox: imports once, then forks a locked-down process per session.

The host speaks to it over a SOCK_SEQPACKET socket: `start <id>` with the session's socket
attached, `end <id>`. When the host closes that socket, everything ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import platform
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

from . import census, lockdown, syscalls
from .session import refuse, rehearse, serve

CENSUS_SECONDS = 0.1


class Supervisor:
    """Starts and ends sessions as the host says."""

    def __init__(self, control: socket.socket, limits: dict[str, Any], isolated: bool) -> None:
        self._control = control
        self._limits = limits
        self._isolated = isolated
        self._running: dict[str, int] = {}
        self._staff = len(census.process_ids()) if isolated else 0

    def run(self) -> None:
        """Obey until the host hangs up."""
        census_due = 0.0
        ear = select.poll()  # the host's descriptor may be one that select.select can't watch
        ear.register(self._control, select.POLLIN)
        while True:
            heard = ear.poll(CENSUS_SECONDS * 1000)
            self._reap()
            if self._isolated and time.monotonic() >= census_due:
                try:
                    self._end_the_greedy()
                except Exception:  # other sessions must not end with a census
                    traceback.print_exc()
                census_due = time.monotonic() + CENSUS_SECONDS
            if not heard:
                continue
            message, fds, _, _ = socket.recv_fds(self._control, 256, 1)
            if not message:
                break
            verb, _, name = message.decode().partition(" ")
            if verb == "start":
                with socket.socket(fileno=fds[0]) as sock:
                    self._start(name, sock)
            elif name in self._running:
                self._end(self._running[name])
        for pid in list(self._running.values()):
            self._end(pid)

    def _start(self, name: str, sock: socket.socket) -> None:
        """Fork a session, or say why there is none. The child never returns from here."""
        uid, gid = os.getuid(), os.getgid()
        try:
            pid = lockdown.fork_into_namespaces() if self._isolated else os.fork()
        except OSError as error:
            refuse(sock, error)
            return
        if pid == 0:
            try:
                self._control.close()
                os.setsid()
                try:
                    self._lock_down(uid, gid)
                except (OSError, ValueError) as error:
                    refuse(sock, error)
                else:
                    serve(sock, self._limits)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        self._running[name] = pid

    def _lock_down(self, uid: int, gid: int) -> None:
        nothing = os.open(os.devnull, os.O_RDWR)
        lockdown.first_to_be_killed()
        if self._isolated:
            lockdown.settle(uid, gid, self._limits["disk_mb"])
        processes = self._limits["processes"] if self._isolated else None
        lockdown.limit_resources(self._limits["memory_mb"], self._limits["disk_mb"], processes)
        if self._isolated:
            lockdown.drop_powers()
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.close(nothing)

    def _end(self, pid: int) -> None:
        """Kill a session: with pid 1 goes its pid namespace, or else at least its group."""
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)

    def _end_the_greedy(self) -> None:
        """End sessions whose processes together hold more memory than each of them may."""
        if not self._running or len(census.process_ids()) <= self._staff + len(self._running):
            return  # each is alone, and the kernel bounds it
        held = census.megabytes_by_session(self._running.values())
        for pid, megabytes in held.items():
            if megabytes > self._limits["memory_mb"]:
                self._end(pid)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._running = {n: other for n, other in self._running.items() if other != pid}


def main() -> None:
    """Serve.

    Arguments: descriptor of the control socket, the limits as JSON, `isolated` or `bare`, and
    modules to import beside PIL before the first fork.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    isolated = sys.argv[3] == "isolated"
    if isolated:
        lockdown.become_unprivileged()
        syscalls.program(platform.machine())
    for module in sys.argv[4:]:
        importlib.import_module(module)
    limits: dict[str, Any] = json.loads(sys.argv[2])
    rehearse(limits)
    gc.collect()
    gc.freeze()  # a collection in a session must not copy the pages it shares with us
    Supervisor(control, limits, isolated).run()


if __name__ == "__main__":
    main()
