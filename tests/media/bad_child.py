"""A decoder child that does what the body tells it to: what a codec that was taken over could do."""

import ctypes
import os
import platform
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from mmdata.media import arena, jail_child
from mmdata.media.image import Transcoded, transcode

MAGIC = b"MAGIC "


def act(data: bytes, *rest: object) -> Transcoded:
    """Do as told, or decode."""
    if not data.startswith(MAGIC):
        return transcode(data, *rest)  # type: ignore[arg-type]
    word, _, argument = data[len(MAGIC) :].decode().partition(" ")
    _ACTS[word](argument)
    return Transcoded(b"did it", 1, 1, 1, 1, "jpeg", "{}")


def loop(_: str) -> None:
    while True:
        pass


def stuck(_: str) -> None:
    """Hang with the kernel's timer taken off."""
    ctypes.CDLL(None).alarm(0)
    import signal

    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(60)


def allocate(mib: str) -> None:
    kept = [bytearray(1 << 20) for _ in range(int(mib))]
    assert kept


def connect(place: str) -> None:
    host, _, port = place.partition(":")
    socket.create_connection((host, int(port)), 1)


def fork(_: str) -> None:
    if os.fork() == 0:
        os._exit(0)


def execute(path: str) -> None:
    os.execv("/bin/sh", ["/bin/sh", "-c", f"touch {path}"])


def kill_parent(_: str) -> None:
    """Ask by the call that names a thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(234 if platform.machine() == "x86_64" else 131, os.getppid(), os.getppid(), 9) != 0:
        raise PermissionError(ctypes.get_errno())


def lie(what: str) -> None:
    """Write an answer that cannot be true, over the answers' head or beside it."""
    memory, text = _memory(), b"[" * 100_000
    heads: dict[str, bytes] = {
        "size": struct.pack("<IQ", 8, 1 << 40), "head": struct.pack("<IQ", 1 << 31, 8),
        "json": struct.pack("<IQ", 9, 0) + b"not json!",
        "deep": struct.pack("<IQ", len(text), 0) + text, "list": struct.pack("<IQ", 2, 0) + b"[]",
        "outcome": struct.pack("<IQ", 19, 0) + b'{"outcome": "fine"}', "keys": struct.pack("<IQ", 2, 0) + b"{}",
        "sides": struct.pack("<IQ", 23, 0) + b'{"sizes": [1, 1, 1, -5]}'[:23],
    }  # fmt: skip
    start = memory._free
    memory._view[start : start + len(heads[what])] = heads[what]
    arena._DONE.pack_into(memory._view, 0, memory.done + 1)
    os.write(1, b".")
    time.sleep(60)


def shout(_: str) -> None:
    """Write 1 GB to where the answers go."""
    for _number in range(1024):
        os.write(1, bytes(1 << 20))


def shrink(_: str) -> None:
    """Take the pages away from under the parent."""
    os.ftruncate(3, 0)


_ACTS: dict[str, Callable[[str], object]] = {
    "segv": lambda _: ctypes.string_at(8), "loop": loop, "stuck": stuck, "allocate": allocate, "connect": connect, "fork": fork,
    "open": lambda path: Path(path).read_bytes(), "write": lambda path: Path(path).write_bytes(b"x"), "execute": execute,
    "lie": lie, "shout": shout, "shrink": shrink, "exit": lambda code: os._exit(int(code)),
    "kill": lambda _: os.kill(os.getpid(), 9), "thread": kill_parent, "parent": lambda _: os.kill(os.getppid(), 9),
}  # fmt: skip
_FOUND: list[arena.Arena] = []


def _memory() -> arena.Arena:
    return _FOUND[0]


class _Arena(arena.Arena):
    def __init__(self, fd: int | None = None) -> None:
        super().__init__(fd)
        _FOUND.append(self)


if __name__ == "__main__":
    vars(jail_child).update(transcode=act, Arena=_Arena)
    jail_child.main()
