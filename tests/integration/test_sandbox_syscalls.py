"""The seccomp filter: its numbers against the kernel's headers, its program run here by hand."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from toolwise.tools.sandbox.inside import syscalls

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
MACHINES = list(syscalls.ARCHITECTURES)
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
THREAD_FLAGS = 0x3D0F00
FORK_FLAGS = 0x1200011


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the kernel would answer: a classic BPF machine with an accumulator."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    audit = audit or syscalls.ARCHITECTURES[machine].audit
    data = struct.pack("=IIQ6Q", number, audit, 0, *values)
    program = list(struct.iter_unpack("=HBBI", syscalls.program(machine)))
    accumulator = at = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            return int(value)
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    numbers = {name: int(number) for name, number in found}
    column, shared_from = syscalls.ARCHITECTURES[machine][1:]
    ours = {name: pair[column] for name, pair in syscalls.FORBIDDEN.items()}
    ours |= {"clone": syscalls.CLONE[column], "socketpair": syscalls.SOCKETPAIR[column]}
    ours |= {"mmap": syscalls.MMAP[column], "prctl": syscalls.PRCTL[column]}
    ours |= {"ioctl": syscalls.IOCTL[column], "fcntl": syscalls.FCNTL[column]}
    ours |= {"getsockopt": syscalls.GETSOCKOPT[column], "sendto": syscalls.SENDTO[column]}
    ours |= {"setrlimit": syscalls.SETRLIMIT[column], "prlimit64": syscalls.PRLIMIT64[column]}
    assert {name: numbers.get(name) for name in ours} == ours
    for name, number in syscalls.ALLOWED_OF_THE_SHARED.items():
        assert numbers.get(name, number) == number >= shared_from  # older headers end earlier


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_forbidden_is_refused_and_what_python_needs_is_not(machine: str) -> None:
    column = syscalls.column_of(machine)
    for name, pair in syscalls.FORBIDDEN.items():
        if pair[column] is not None:
            assert verdict(machine, pair[column]) == EPERM, name
    needed = {  # name: (x86_64, aarch64)
        **{"read": (0, 63), "write": (1, 64), "openat": (257, 56), "mmap": (9, 222)},
        **{"futex": (202, 98), "execve": (59, 221), "wait4": (61, 260), "kill": (62, 129)},
        **{"recvfrom": (45, 207), "sendto": (44, 206), "getrandom": (318, 278)},
        **{"exit_group": (231, 94), "prctl": (157, 167), "pipe2": (293, 59)},
    }
    for name, numbers in needed.items():
        assert verdict(machine, numbers[column]) == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_of_the_shared_numbers_only_the_named_exist(machine: str) -> None:
    shared_from = syscalls.ARCHITECTURES[machine].shared_from
    for number in (*range(shared_from, 700), 0x40000000, 0x40000029, 0xFFFFFFFF):
        allowed = number in syscalls.ALLOWED_OF_THE_SHARED.values()
        assert verdict(machine, number) == (ALLOW if allowed else ENOSYS), number
    assert 435 not in syscalls.ALLOWED_OF_THE_SHARED.values()  # clone3


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_a_call_has_two_faces(machine: str) -> None:
    column = syscalls.column_of(machine)
    clone, fcntl = syscalls.CLONE[column], syscalls.FCNTL[column]
    for flags in (THREAD_FLAGS, FORK_FLAGS):
        assert verdict(machine, clone, flags) == ALLOW
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, namespace | FORK_FLAGS) == EPERM
    assert verdict(machine, syscalls.SOCKETPAIR[column], 1) == ALLOW
    assert verdict(machine, syscalls.SOCKETPAIR[column], 30) == EPERM
    assert verdict(machine, syscalls.IOCTL[column], 0, 0x5401) == ALLOW
    # SIOCGIFCONF, SIOCGIFHWADDR, TIOCSTI; of an int the kernel looks at the lower half only
    for request in (0x8912, 0x8927, 0x5412, 1 << 32 | 0x5412):
        assert verdict(machine, syscalls.IOCTL[column], 0, request) == EPERM
    mmap, prctl = syscalls.MMAP[column], syscalls.PRCTL[column]
    for flags in (0x22, 0x02, 0x01, 0x20022):  # private, or of a file
        assert verdict(machine, mmap, 0, 4096, 3, flags) == ALLOW
    for flags in (0x21, 0x23, 0x8021):
        assert verdict(machine, mmap, 0, 4096, 3, flags) == EPERM
    assert verdict(machine, prctl, 15) == ALLOW
    assert verdict(machine, prctl, 62) == EPERM
    assert verdict(machine, fcntl, 3, 1030) == ALLOW  # F_DUPFD_CLOEXEC
    for command in (6, 8, 1024, 1031, 1036):  # a lock, an owner, a lease, a pipe's width, a hint
        assert verdict(machine, fcntl, 3, command) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_a_socket_talks_to_its_other_end_alone(machine: str) -> None:
    column = syscalls.column_of(machine)
    getsockopt, sendto = syscalls.GETSOCKOPT[column], syscalls.SENDTO[column]
    assert verdict(machine, getsockopt, 3, 1, 4) == ALLOW  # SO_ERROR
    for option in (17, 59, 71, 77):
        assert verdict(machine, getsockopt, 3, 1, option) == EPERM
    assert verdict(machine, sendto, 3, 1 << 40, 5, 0x4040, 0, 16) == ALLOW
    for address in (1 << 12, 1 << 32, 0x7FFF_0000_0000):
        assert verdict(machine, sendto, 3, 1 << 40, 5, 0, address, 16) == EPERM
    assert verdict(machine, sendto, 3, 1 << 40, 5, 0x41) == EPERM  # MSG_OOB


@pytest.mark.parametrize("machine", MACHINES)
def test_the_limit_of_core_dumps_stays(machine: str) -> None:
    column = syscalls.column_of(machine)
    for resource, answer in ((4, EPERM), (7, ALLOW)):
        assert verdict(machine, syscalls.SETRLIMIT[column], resource, 1 << 40) == answer
        assert verdict(machine, syscalls.PRLIMIT64[column], 0, resource, 1 << 40) == answer


def test_numbers_of_another_architecture_kill() -> None:
    i386 = 0x40000003
    assert verdict("x86_64", 20, audit=i386) == KILL
    assert verdict("aarch64", 20, audit=i386) == KILL
