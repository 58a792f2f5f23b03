"""Takes power away from a session for good: namespaces, mounts, capabilities, syscalls, limits."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import resource
import signal
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
PYTHON = ctypes.PyDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
ANY_NAMESPACE = CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | 0x4E000000  # cgroup, uts, ipc, net
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID = 0x01000000, 0x00200000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_GET_TID_ADDRESS = 4, 22, 38, 40
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


def fork_into_namespaces() -> int:
    """`os.fork()`, with new user, mount and pid namespaces for the child, who is pid 1 there.

    A fork of its own for the pid namespace, which `unshare` would need, costs as much again.
    """
    thread_id = ctypes.c_void_p()
    LIBC.prctl(PR_GET_TID_ADDRESS, ctypes.byref(thread_id), 0, 0, 0)  # where libc keeps it
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | signal.SIGCHLD
    if thread_id.value:
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    PYTHON.PyOS_BeforeFork()
    # Two places for one address: x86_64 and aarch64 differ in the order of the last two.
    pid = PYTHON.syscall(CLONE[_column()], flags, None, None, thread_id, thread_id)
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
    os.chdir("/tmp")


def drop_powers() -> None:
    """No capabilities, none to be gained, and no way to the syscalls of `FORBIDDEN`."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked("capset", LIBC.capset(header, bytes(24)))
    _checked("prctl", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    code = syscall_filter()
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code))
    _checked("seccomp", LIBC.prctl(PR_SET_SECCOMP, 2, program, 0, 0))


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
    _write("/proc/self/oom_score_adj", "1000")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def _tmpfs(where: str, flags: int, options: str) -> None:
    result = LIBC.mount(b"tmpfs", where.encode(), b"tmpfs", flags, options.encode())
    _checked(f"mount tmpfs on {where}", result)


@functools.cache
def syscall_filter() -> ctypes.Array[ctypes.c_char]:
    """The seccomp filter: a classic BPF program, 8 bytes an instruction."""
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
    code = b"".join(program)
    return ctypes.create_string_buffer(code, len(code))


def _column() -> int:
    return ARCHITECTURES[platform.machine()][1]


def _checked(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
