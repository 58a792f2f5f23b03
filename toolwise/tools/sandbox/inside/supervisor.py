"""First process of a sandbox: imports once, then forks a locked-down process per session.

The host speaks to it over a SOCK_SEQPACKET socket: `start <id>` with the session's socket
attached, `end <id>`. When the host closes that socket, everything ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from . import lockdown


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    limits: dict[str, Any] = json.loads(sys.argv[2])
    isolated = sys.argv[3] == "isolated"
    if isolated:
        lockdown.become_unprivileged()
        lockdown.adopt_orphans()
    from . import session

    session.Image.init()
    gc.collect()
    gc.freeze()  # a collection in a session must not copy the pages it shares with us
    running: dict[str, int] = {}
    signal.signal(signal.SIGCHLD, lambda *_: reap(running))
    while True:
        message, fds, _, _ = socket.recv_fds(control, 256, 1)
        if not message:
            for pid in running.values():
                end(pid)
            return
        verb, _, name = message.decode().partition(" ")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # `reap` must not interfere
        if verb == "start":
            with socket.socket(fileno=fds[0]) as sock:
                running[name] = start(sock, control, limits, isolated)
        elif name in running:
            end(running[name])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def start(
    sock: socket.socket, control: socket.socket, limits: dict[str, Any], isolated: bool
) -> int:
    """Fork a session; returns its pid. Two forks: a pid namespace begins with the next child."""
    reader, writer = os.pipe()
    outer = os.fork()
    if outer == 0:
        try:
            control.close()
            os.close(reader)
            lockdown.first_to_be_killed()
            if isolated:
                lockdown.enter_namespaces(limits["disk_mb"])
            inner = os.fork()
            if inner == 0:
                os.close(writer)
                run_session(sock, limits, isolated)
            os.write(writer, str(inner).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        pid = answer.read()
    os.waitpid(outer, 0)
    if not pid:
        raise SystemExit("a session could not be locked down")
    return int(pid)


def run_session(sock: socket.socket, limits: dict[str, Any], isolated: bool) -> NoReturn:
    """Lock this process down, serve calls, end. Never returns into the supervisor's code."""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        nothing = os.open(os.devnull, os.O_RDWR)
        if isolated:
            os.chdir("/tmp")
            lockdown.drop_powers()
        processes = limits["processes"] if isolated else None
        lockdown.limit_resources(limits["memory_mb"], limits["disk_mb"], processes)
        from .session import serve

        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        serve(sock, limits)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def end(pid: int) -> None:
    """Kill a session: with its first process goes its pid namespace, or else its process group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def reap(running: dict[str, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            for name in [name for name, other in running.items() if other == pid]:
                del running[name]


if __name__ == "__main__":
    main()
