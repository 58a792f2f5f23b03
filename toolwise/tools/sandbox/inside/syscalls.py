"""The seccomp filter of a session: which syscalls the kernel refuses it, as a classic BPF program.

The numbers below 335 (x86_64) and 295 (aarch64) are a closed set, so what a session has no use for
is named. From there on both architectures count alike and the kernel goes on adding: what a session
may use is named, and the rest does not exist for it.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple


class Architecture(NamedTuple):
    """How the kernel calls it, its column in the tables, its first number that all share."""

    audit: int
    column: int
    shared_from: int


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 0, 335),
    "aarch64": Architecture(0xC00000B7, 1, 295),
}
EPERM, ENOSYS = 1, 38
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
ANY_NAMESPACE = CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | 0x4E000000  # cgroup, uts, ipc, net

FORBIDDEN = {  # name: (x86_64, aarch64)
    # other processes and their memory
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # namespaces, mounts, and files by handle
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # where sessions could meet: names in the network namespace, descriptors sent
    "socket": (41, 198),
    "bind": (49, 200),
    "connect": (42, 203),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "setsockopt": (54, 208),  # may also raise how much kernel memory a socket takes
    # System V and POSIX memory, semaphores and queues, and memory no limit counts
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "sendfile": (40, 71),  # one byte sent holds its whole page, even of a file that is gone
    # locks and watches on the read-only files that all share
    "flock": (73, 32),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # a share of the processor, of the disks and of tables that count for the whole machine
    "setsid": (112, 157),
    "sync": (162, 81),
    "syncfs": (306, 267),
    "io_setup": (206, 0),
    "membarrier": (324, 283),
    # parts of the kernel a session has no use for
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}
ALLOWED_OF_THE_SHARED = {
    "pidfd_open": 434,
    "close_range": 436,
    "openat2": 437,
    "faccessat2": 439,
    "epoll_pwait2": 441,
    "futex_waitv": 449,
    "fchmodat2": 452,
}
"""clone3 is not among them: its flags are out of a filter's sight, and libc falls back to clone."""
CLONE, SOCKETPAIR, MMAP, PRCTL = (56, 220), (53, 199), (9, 222), (157, 167)
IOCTL, FCNTL, GETSOCKOPT, SENDTO = (16, 29), (72, 25), (55, 209), (44, 206)
SETRLIMIT, PRLIMIT64 = (160, 164), (302, 261)
NAMELESS_SHARED = 0x21  # MAP_SHARED | MAP_ANONYMOUS: held, yet resident nowhere, once let go
CORE_SCHEDULING = (62,)  # PR_SCHED_CORE: leaves the other threads of a core idle
CORE_LIMIT = (4,)  # RLIMIT_CORE: see `lockdown.limit_resources`
OUT_OF_BAND = 1  # MSG_OOB: much kernel code that hardly anybody needs
ALLOWED_IOCTLS = {
    "TCGETS": 0x5401,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "FICLONE": 0x40049409,
}
"""Others ask a socket of the host for the host's network, or act on terminals and devices."""
ALLOWED_FCNTLS = {
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_DUPFD_CLOEXEC": 1030,
    "F_GETPIPE_SZ": 1032,
}
"""Others leave a mark on a file that all share (locks, leases, notices, hints) or widen a pipe."""
ALLOWED_SOCKET_OPTIONS = {"SO_TYPE": 3, "SO_ERROR": 4, "SO_PROTOCOL": 38, "SO_DOMAIN": 39}
"""Others tell who is at the other end of the wire, which is the host."""

LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in `struct seccomp_data`
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def column_of(machine: str) -> int:
    """Where the numbers of a `platform.machine()` stand in a pair (x86_64, aarch64)."""
    return ARCHITECTURES[machine].column


@functools.cache
def program(machine: str) -> bytes:
    """The filter for `platform.machine()`, 8 bytes an instruction.

    Raises:
        KeyError: no such machine in `ARCHITECTURES`.
    """
    audit, column, shared_from = ARCHITECTURES[machine]
    refuse, allow = _op(RETURN, ERRNO | EPERM), _op(RETURN, ALLOW)
    code = [_op(LOAD, ARCHITECTURE), _op(EQUAL, audit, 1), _op(RETURN, KILL), _op(LOAD, NUMBER)]
    shared = [part for number in ALLOWED_OF_THE_SHARED.values() for part in _if(number, allow)]
    shared.append(_op(RETURN, ERRNO | ENOSYS))
    code += [_op(AT_LEAST, shared_from, 0, len(shared)), *shared]
    for number in sorted(pair[column] for pair in FORBIDDEN.values() if pair[column] is not None):
        code += _if(number, refuse)

    def among(argument: int, values: Iterable[int], then: bytes, otherwise: bytes) -> list[bytes]:
        tests = [part for value in values for part in _if(value, then)]
        return [_argument(argument), *tests, otherwise]

    for pair, rule in (
        (CLONE, [_argument(0), _op(ANY_BIT, ANY_NAMESPACE, 0, 1), refuse, allow]),
        (SOCKETPAIR, among(0, [socket.AF_UNIX], allow, refuse)),
        (MMAP, [_argument(3), _op(AND, NAMELESS_SHARED), *_if(NAMELESS_SHARED, refuse), allow]),
        (PRCTL, among(0, CORE_SCHEDULING, refuse, allow)),
        (SETRLIMIT, among(0, CORE_LIMIT, refuse, allow)),
        (PRLIMIT64, among(1, CORE_LIMIT, refuse, allow)),
        (IOCTL, among(1, ALLOWED_IOCTLS.values(), allow, refuse)),
        (FCNTL, among(1, ALLOWED_FCNTLS.values(), allow, refuse)),
        (GETSOCKOPT, among(2, ALLOWED_SOCKET_OPTIONS.values(), allow, refuse)),
        (
            SENDTO,  # to the other end alone: an address would be a name to meet at
            [
                *(_argument(3), _op(ANY_BIT, OUT_OF_BAND, 0, 1), refuse),
                *(
                    part
                    for half in (0, 1)
                    for part in (_argument(4, half), _op(EQUAL, 0, 1), refuse)
                ),
                allow,
            ],
        ),
    ):
        code += [_op(EQUAL, pair[column], 0, len(rule)), *rule]
    return b"".join([*code, allow])


def _argument(number: int, half: int = 0) -> bytes:
    """Load the lower or upper 32 bits of an argument; the kernel reads an int from the lower."""
    return _op(LOAD, ARGUMENTS + 8 * number + 4 * half)


def _if(value: int, then: bytes) -> list[bytes]:
    return [_op(EQUAL, value, 0, 1), then]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the last two say how many to skip after a comparison."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
