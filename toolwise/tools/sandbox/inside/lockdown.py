"""Takes power away from a session for good: namespaces, mounts, capabilities, syscalls, limits."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
ANY_NAMESPACE = CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | 0x4E000000  # cgroup, uts, ipc, net
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
LAST_CAPABILITY = 63
USER = 1000
UNPRIVILEGED = 64123
"""What uid 0 becomes before it runs anything: RLIMIT_NPROC does not bind root."""

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
CLONE, CLONE3, EPERM, ENOSYS = (56, 220), 435, 1, 38
FORBIDDEN = {  # name: (x86_64, aarch64)
    # other processes and their memory
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # what would be shared with other sessions, or hold memory no limit counts
    "socket": (41, 198),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # parts of the kernel a session has no use for
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}


def become_unprivileged() -> None:
    """Give up uid 0 for good, where the sandbox was started by root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        _checked("prctl", LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # /proc/self is ours again


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends."""
    _checked("prctl", LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def enter_namespaces(disk_mb: int) -> None:
    """New user, mount and (for children) pid namespaces; an empty /tmp, and no /proc."""
    uid, gid = os.getuid(), os.getgid()
    _checked("unshare", LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{USER} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{USER} {gid} 1")
    _tmpfs("/tmp", MS_NOSUID | MS_NODEV, f"mode=700,nr_inodes=4096,size={disk_mb}m")
    _tmpfs("/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, "mode=555,size=4k")


def drop_powers() -> None:
    """No capabilities, none to be gained, and no way to the syscalls of `FORBIDDEN`."""
    for capability in range(LAST_CAPABILITY + 1):
        if LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last one this kernel knows
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked("capset", LIBC.capset(header, bytes(24)))
    _checked("prctl", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _forbid_syscalls()


def limit_resources(memory_mb: int, file_mb: int, processes: int | None) -> None:
    """Bound each process of the session, and their number where `processes` is given."""
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_FSIZE: file_mb << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))


def first_to_be_killed() -> None:
    """Should the machine run out of memory, the kernel takes this process before any other."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def _tmpfs(where: str, flags: int, options: str) -> None:
    result = LIBC.mount(b"tmpfs", where.encode(), b"tmpfs", flags, options.encode())
    _checked(f"mount tmpfs on {where}", result)


def _forbid_syscalls() -> None:
    """Install a seccomp filter: a classic BPF program, 8 bytes an instruction."""
    audit, column = ARCHITECTURES[platform.machine()]
    load, equal, at_least, any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, errno = 0x7FFF0000, 0x80000000, 0x00050000

    def op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    program = [
        op(load, 4),  # architecture
        op(equal, audit, 1),
        op(ret, kill),
        op(load, 0),  # syscall number
        op(at_least, 0x40000000, 0, 1),  # the x32 interface has other numbers
        op(ret, errno | EPERM),
        op(equal, CLONE3, 0, 1),  # its flags are out of a filter's sight; libc falls back to clone
        op(ret, errno | ENOSYS),
        op(equal, CLONE[column], 0, 3),
        op(load, 16),  # clone's flags
        op(any_bit, ANY_NAMESPACE, 0, 1),
        op(ret, errno | EPERM),
        op(load, 0),
    ]
    numbers = sorted({pair[column] for pair in FORBIDDEN.values()})
    for number in numbers:
        program += [op(equal, number, 0, 1), op(ret, errno | EPERM)]
    program.append(op(ret, allow))
    code = ctypes.create_string_buffer(b"".join(program))
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _checked("seccomp", LIBC.prctl(PR_SET_SECCOMP, 2, filter_, 0, 0))


def _checked(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
