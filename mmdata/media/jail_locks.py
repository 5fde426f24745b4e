"""What a decoder child can no longer do once it is locked in.

Decided here, on Linux: limits of memory, files and descriptors always; no new privileges; an empty network where the kernel
gives one to a plain user; and a filter that refuses every system call but those that computing needs, so that no file, socket
or process can be had. On macOS the limits alone hold. `lock_in` returns the names of what is in force.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_CLONE_THREAD = 0x00010000
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 38, 4, 22
_SECCOMP_MODE_FILTER = 2
_ALLOW, _REFUSE, _ABSENT, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000  # EPERM, ENOSYS
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_X32_BIT = 0x40000000

# The calls that computing in memory, waiting and answering need, none of which can reach another process; numbers of x86-64
# and of the common table (aarch64).
_CALLS = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "lseek": (8, 62), "close": (3, 57),
    "fstat": (5, 80), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "getrandom": (318, 278), "getpid": (39, 172), "gettid": (186, 178), "exit": (60, 93),
    "exit_group": (231, 94), "set_robust_list": (273, 99),
    "setitimer": (38, 103),
    "rseq": (334, 293), "restart_syscall": (219, 128),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 220), (435, 435)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def lock_in(memory_mib: int) -> list[str]:
    """Lock this process in, for good; what it needs must be loaded by now."""
    held = ["limits"]
    if not sys.platform.startswith("linux"):
        _limit(None)
        return held
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - the last file this process opens
        in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        held.append("namespaces")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no_new_privs")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _limit(in_use + (memory_mib << 20))
    if _filter(libc.prctl):
        held.append("seccomp")
    return held


def _limit(address_space: int | None) -> None:
    if address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # no further file and no socket can be opened


def _filter(prctl: Callable[..., int]) -> bool:
    if platform.machine() not in _MACHINES:
        return False
    column, machine = _MACHINES[platform.machine()]
    steps = [
        struct.pack("<HBBI", _LOAD, 0, 0, 4), _jump(_EQUAL, machine, 1, 0), _answer(_KILL),
        struct.pack("<HBBI", _LOAD, 0, 0, 0), _jump(_ANY_BIT, _X32_BIT, 0, 1), _answer(_KILL),
    ]  # fmt: skip
    for numbers in _CALLS.values():
        steps += [_jump(_EQUAL, numbers[column], 0, 1), _answer(_ALLOW)]
    # A thread may start, a process may not. What asks for the newer call falls back to the one that can be looked into.
    steps += [_jump(_EQUAL, _CLONE3[column], 0, 1), _answer(_ABSENT), _jump(_EQUAL, _CLONE[column], 1, 0), _answer(_REFUSE)]
    steps += [struct.pack("<HBBI", _LOAD, 0, 0, 16), _jump(_ANY_BIT, _CLONE_THREAD, 0, 1), _answer(_ALLOW), _answer(_REFUSE)]
    code = ctypes.create_string_buffer(b"".join(steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    return prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0


def _jump(how: int, value: int, if_so: int, if_not: int) -> bytes:
    return struct.pack("<HBBI", how, if_so, if_not, value)


def _answer(value: int) -> bytes:
    return struct.pack("<HBBI", _RETURN, 0, 0, value)
