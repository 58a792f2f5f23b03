"""Takes power away from a session for good: namespaces, mounts, capabilities, syscalls, limits."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from pathlib import Path

from . import syscalls

LIBC = ctypes.CDLL(None, use_errno=True)
PYTHON = ctypes.PyDLL(None, use_errno=True)

NEW_NAMESPACES = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID = 0x01000000, 0x00200000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_GET_TID_ADDRESS = 4, 22, 38, 40
RLIMIT_SIGPENDING = 11
"""Signals and timers waiting; unbounded, one session could use up those of its host user."""
USER = 1000
UNPRIVILEGED = 64123
"""What uid 0 becomes before it runs anything: RLIMIT_NPROC does not bind root."""


def become_unprivileged() -> None:
    """Give up uid 0 for good, where the sandbox was started by root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        _checked("prctl", LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # /proc/self is ours again


def fork_into_namespaces() -> int:
    """`os.fork()`, with new user, mount and pid namespaces for the child, who is pid 1 there.

    A fork of its own for the pid namespace, which `unshare` would need, costs as much again.
    """
    thread_id = ctypes.c_void_p()
    LIBC.prctl(PR_GET_TID_ADDRESS, ctypes.byref(thread_id), 0, 0, 0)  # where libc keeps it
    flags = NEW_NAMESPACES | signal.SIGCHLD
    if thread_id.value:
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    PYTHON.PyOS_BeforeFork()
    # Two places for one address: x86_64 and aarch64 differ in the order of the last two.
    number = syscalls.CLONE[syscalls.column_of(platform.machine())]
    pid = PYTHON.syscall(number, flags, None, None, thread_id, thread_id)
    if pid == 0:
        PYTHON.PyOS_AfterFork_Child()
    else:
        PYTHON.PyOS_AfterFork_Parent()
    _checked("clone", 0 if pid >= 0 else -1)
    return pid


def settle(uid: int, gid: int, disk_mb: int) -> None:
    """In the new namespaces: be user 1000 (outside: `uid`), with an empty /tmp and no /proc."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{USER} {uid} 1")
    _write("/proc/self/gid_map", f"{USER} {gid} 1")
    _tmpfs("/tmp", MS_NOSUID | MS_NODEV, f"mode=700,nr_inodes=4096,size={disk_mb}m")
    _tmpfs("/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, "mode=555,size=4k")
    for device in Path("/dev").iterdir():
        _read_only(device)
    os.chdir("/tmp")


def drop_powers() -> None:
    """No capabilities, none to be gained, and only the syscalls a session has a use for."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked("capset", LIBC.capset(header, bytes(24)))
    _checked("prctl", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    code = syscalls.program(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    _checked("seccomp", LIBC.prctl(PR_SET_SECCOMP, 2, program, 0, 0))


def limit_resources(memory_mb: int, file_mb: int, processes: int | None) -> None:
    """Bound each process of the session, and their number where `processes` is given.

    A core dump of at most 1 byte is none. With 0 the kernel would still hand a crash to the host's
    crash handler, where `core_pattern` names one.
    """
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_FSIZE: file_mb << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_MEMLOCK: 0,
        RLIMIT_SIGPENDING: 64,
    }
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes
    for which, value in limits.items():
        hard = resource.getrlimit(which)[1]
        # One that is as low already stays: gVisor has some at 0 and lets nobody set them.
        if hard == resource.RLIM_INFINITY or hard > value:
            resource.setrlimit(which, (value, value))


def first_to_be_killed() -> None:
    """Should the machine run out of memory, the kernel takes this process before any other."""
    _write("/proc/self/oom_score_adj", "1000")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def _tmpfs(where: str, flags: int, options: str) -> None:
    result = LIBC.mount(b"tmpfs", where.encode(), b"tmpfs", flags, options.encode())
    _checked(f"mount tmpfs on {where}", result)


def _read_only(path: Path) -> None:
    """A device is written to all the same, but its times, which all sessions see, stay."""
    kept = os.statvfs(path).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | kept
    _checked(f"remount {path}", LIBC.mount(None, bytes(path), None, flags, None))


def _checked(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
