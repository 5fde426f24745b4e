"""Who may write to a run folder: the holder of the highest `lease/EPOCH`, taken by conditional create.

A holder proves that it lives by a counter that it keeps raising. Another driver takes over when the counter has stood
still for a while by its own monotonic clock, or at once when the holder was a process of this machine that has ended.
"""

import json
import os
import platform
import secrets
import threading
import time
from types import TracebackType
from typing import Any, Self

from mmdata.errors import RunError
from mmdata.storage import Store

BEAT_S = 1.0
STILL_S = 10.0


class Lease:
    """Held while the context is open."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.epoch = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        epochs = self._epochs()
        current = epochs[-1] if epochs else 0
        if current and not self._ended(current):
            raise RunError(
                f"{self.store.url}: another run is at work ({self._describe(current)})",
                hint="wait for it or stop it; its lease ends by itself when it dies",
            )
        mine = {"host": _host(), "pid": os.getpid(), "start": _start_of(os.getpid()), "nonce": secrets.token_hex(8)}
        if not self.store.create(f"lease/{current + 1}", json.dumps(mine).encode()):
            raise RunError(f"{self.store.url}: another run has just started", hint="wait for it")
        self.epoch = current + 1
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.store.put(f"lease/{self.epoch}.end", b"")

    def _epochs(self) -> list[int]:
        return sorted(int(name) for name in self.store.list("lease") if name.isdigit())

    def _ended(self, epoch: int) -> bool:
        if self.store.exists(f"lease/{epoch}.end"):
            return True
        holder = self._holder(epoch)
        if holder["host"] == _host() and holder["start"]:  # where the kernel tells when a process started
            return bool(_start_of(holder["pid"]) != holder["start"])
        seen, since = self._counter(epoch), time.monotonic()
        while time.monotonic() - since < STILL_S:
            time.sleep(BEAT_S / 2)
            if self._counter(epoch) != seen:
                return False
        return True

    def _holder(self, epoch: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.store.read(f"lease/{epoch}"))
        except ValueError:  # damaged: only the counter can tell
            return {"host": "an unknown machine", "pid": 0, "start": ""}
        return found

    def _describe(self, epoch: int) -> str:
        holder = self._holder(epoch)
        return f"process {holder['pid']} on {holder['host']}"

    def _counter(self, epoch: int) -> bytes:
        name = f"lease/{epoch}.beat"
        return self.store.read(name) if self.store.exists(name) else b""

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(BEAT_S):
            count += 1
            self.store.put(f"lease/{self.epoch}.beat", str(count).encode())


def _host() -> str:
    """Name this machine and this boot of it, so that a process number means something."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - not a path of ours
            return f"{platform.node()}/{file.read().strip()}"
    except OSError:
        return platform.node()


def _start_of(pid: int) -> str:
    """Return when a process started, in the kernel's count; empty when there is none (numbers are used again)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - not a path of ours
            fields = file.read().rpartition(")")[2].split()
            return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        return ""
