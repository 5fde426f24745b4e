"""Memory that a parent shares with one child: it has no name, its size is sealed, and whole batches go through it.

Layout: how many images are done (u64), the request's length (u64), the request (JSON), the bodies, then for each image done
its answer: lengths of head and body (u32, u64), head (JSON), body. Pipes carry one byte a batch. Decided here: the child cannot
shrink the memory, so it cannot take pages away from under the parent; pages count once they are written, and large results
give theirs back; every number that the other side wrote is checked before it is followed.
"""

import json
import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

SIZE = 320 << 20
_KEPT = 16 << 20  # pages up to here stay for the next batch
_START, _ANSWER, _DONE = struct.Struct("<QQ"), struct.Struct("<IQ"), struct.Struct("<Q")
_MAX_HEAD = 1 << 19
# The bytes that go through the pipes: what the parent asks for, and how the child ends it.
GREET, BATCH, DONE, FULL = b"?", b"!", b".", b"f"
Bytes = bytes | bytearray | memoryview


class Arena:
    """`fd` is what the child inherits, and what it opens the same memory by."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _anonymous_file() if fd is None else fd
        self._view = mmap.mmap(self.fd, SIZE)
        self._free = self._used = 0

    def close(self) -> None:
        """Give everything back."""
        self._view.close()
        os.close(self.fd)

    def ask(self, request: dict[str, Any], bodies: Sequence[Bytes]) -> None:
        """Lay a request and its bodies down, and forget the answers before."""
        view, lengths = self._view, [len(body) for body in bodies]
        text = json.dumps(request | {"lengths": lengths}).encode()
        end = _START.size + len(text)
        view[:end] = _START.pack(0, len(text)) + text
        for body, length in zip(bodies, lengths, strict=True):
            view[end : end + length] = body
            end += length
        self._free = self._used = end

    def asked(self) -> tuple[dict[str, Any], Iterator[bytes]]:
        """Return, in the child, the request and its bodies."""
        size = _START.unpack_from(self._view)[1]
        request = json.loads(self._view[_START.size : _START.size + size])
        first = _START.size + size
        self._free = first + sum(request["lengths"])
        return request, self._bodies(first, request["lengths"])

    def answer(self, head: dict[str, object], body: Bytes) -> bool:
        """Lay, in the child, the answer to the next image down; False if there is no room."""
        text = json.dumps(head).encode()
        end = self._free + _ANSWER.size + len(text) + len(body)
        if end > SIZE:
            return False
        middle = self._free + _ANSWER.size + len(text)
        self._view[self._free : middle] = _ANSWER.pack(len(text), len(body)) + text
        self._view[middle:end] = body
        self._free = end
        _DONE.pack_into(self._view, 0, self.done + 1)
        return True

    @property
    def done(self) -> int:
        """How many images are done, as the child says."""
        return int(_DONE.unpack_from(self._view)[0])

    def take(self) -> tuple[dict[str, Any], bytes]:
        """Return a copy of the next answer, which nobody can change any more; ValueError if it cannot be one."""
        middle = self._used + _ANSWER.size
        if middle > SIZE:
            raise ValueError("an answer outside the shared memory")
        size, body_size = _ANSWER.unpack_from(self._view, self._used)
        if size > _MAX_HEAD or middle + size + body_size > SIZE:
            raise ValueError("an answer outside the shared memory")
        head = json.loads(self._view[middle : middle + size])
        if not isinstance(head, dict):
            raise TypeError("an answer that is no object")
        self._used = middle + size + body_size
        return head, self._view[middle + size : self._used]

    def trim(self) -> None:
        """Give back the pages beyond what small batches need, if the answers taken went there."""
        if self._used > _KEPT and hasattr(mmap, "MADV_REMOVE"):
            self._view.madvise(mmap.MADV_REMOVE, _KEPT, SIZE - _KEPT)

    def _bodies(self, start: int, lengths: Sequence[int]) -> Iterator[bytes]:
        for length in lengths:
            yield self._view[start : start + length]
            start += length


def _anonymous_file() -> int:
    if not sys.platform.startswith("linux"):
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, SIZE)
        return fd
    import fcntl  # not on Windows, where corpora are read without a jail

    fd = os.memfd_create("mmdata-jail", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
