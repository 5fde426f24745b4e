"""Who may write to a run folder: the holder of the highest `lease/EPOCH`, taken by conditional create.

A holder proves that it lives by a counter that it keeps raising. Another driver takes over when the counter has stood
still for a while by its own monotonic clock, or at once when the holder was a process of this machine that has ended. A
holder that was stopped for so long finds the higher epoch before it writes anything that counts, and ends.
"""

import json
import os
import secrets
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from mmdata.clock import Clock
from mmdata.engine.runstore import highest
from mmdata.errors import BusyError, RunError
from mmdata.failpoint import step
from mmdata.storage import Store, host, started

BEAT_S = 1.0
STILL_S = 10.0


class Lease:
    """Held while the context is open."""

    def __init__(self, store: Store, clock: Clock | None = None) -> None:
        self.store, self.clock = store, clock or Clock()
        self.epoch = 0
        self._beaten = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        current = self._highest()
        if current and not self._ended(current):
            raise BusyError(
                f"{self.store.url}: another run is at work ({self._describe(current)})",
                hint="wait for it or stop it; its lease ends by itself when it dies",
            )
        mine = {"host": host(), "pid": os.getpid(), "start": started(os.getpid()), "nonce": secrets.token_hex(8)}
        with step("lease"):
            taken = self.store.create(f"lease/{current + 1}", json.dumps(mine).encode())
        if not taken:
            raise BusyError(f"{self.store.url}: another run has just started", hint="wait for it")
        self.epoch, self._beaten = current + 1, self.clock.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join(STILL_S)  # a disk that does not answer must not hold the end up
        with suppress(OSError, RunError):  # a full disk: the process' end says the same
            self.store.put(f"lease/{self.epoch}.end", b"")

    def check(self, *, now: bool = False) -> None:
        """Raise BusyError when another run may have taken over: asked at once, or when this one has stood still."""
        if (now or self.clock.monotonic() - self._beaten > STILL_S / 2) and self.store.exists(f"lease/{self.epoch + 1}"):
            raise BusyError(
                f"{self.store.url}: this run stood still for so long that another took over ({self._describe(self.epoch + 1)})",
                hint="nothing is lost: the other run goes on from what was done",
            )

    def _highest(self) -> int:
        return highest(self.store, "lease/{}")

    def _ended(self, epoch: int) -> bool:
        if has_ended(self.store, epoch):
            return True
        seen, since = self._counter(epoch), self.clock.monotonic()
        while self.clock.monotonic() - since < STILL_S:
            self.clock.sleep(BEAT_S / 2)
            if self._counter(epoch) != seen:
                return False
        return True

    def _describe(self, epoch: int) -> str:
        holder = _holder(self.store, epoch)
        return f"process {holder['pid']} on {holder['host']}"

    def _counter(self, epoch: int) -> bytes:
        name = f"lease/{epoch}.beat"
        return self.store.read(name) if self.store.exists(name) else b""

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(BEAT_S):
            count += 1
            with suppress(OSError, RunError):  # the run itself meets the same trouble and says so
                self.store.put(f"lease/{self.epoch}.beat", str(count).encode())
                if not self.store.exists(f"lease/{self.epoch + 1}"):
                    self._beaten = self.clock.monotonic()


def has_ended(store: Store, epoch: int) -> bool:
    """Say whether the holder of a lease is known to have ended: it said so, or was a process of this machine that is gone."""
    if store.exists(f"lease/{epoch}.end"):
        return True
    holder = _holder(store, epoch)
    here = holder.get("host") == host() and bool(holder.get("start"))  # where the kernel tells when a process started
    return here and started(holder["pid"]) != holder["start"]


def _holder(store: Store, epoch: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(store.read(f"lease/{epoch}"))
    except ValueError:  # damaged: only the counter can tell
        return {"host": "an unknown machine", "pid": 0, "start": ""}
    return found
