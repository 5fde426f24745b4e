"""Images of a partition on their way to the stages: read, decoded and prepared ahead, in threads, beside what computes.

Decided here: an image is read and decoded once for all stages of a task. What a stage's own `prepare` makes of it is made in
the same thread, and where nobody needs the pixels themselves they are let go at once. No more than the next chunk is ahead,
and no new image is begun while those ahead hold more than `MAX_BYTES`: the rest is made when it is asked for.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mmdata.errors import RecordError
from mmdata.media import Jails, decode
from mmdata.shards.payloads import Ref, fetch_payload
from mmdata.storage import Store

MAX_BYTES = 512 << 20
Prepare = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Picture:
    """What became of one image: its pixels, if anybody needs them, and what each step prepared of them."""

    image: np.ndarray | None
    prepared: Mapping[int, np.ndarray]

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(array.nbytes for array in (self.image, *self.prepared.values()) if array is not None)


@dataclass
class Pictures:
    """The images of the chunks at hand.

    trust     bytes of our own making need no jail
    prepares  by step: what prepares an image for it; a step that is not in it gets the pixels
    bare      True when no step needs the pixels themselves
    """

    store: Store
    jails: Jails
    threads: ThreadPoolExecutor
    trust: bool
    prepares: Mapping[int, Prepare] = field(default_factory=dict)
    bare: bool = False
    _made: dict[int, Picture | RecordError] = field(default_factory=dict)
    _ahead: dict[int, "Future[Picture | RecordError | None]"] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _bytes: int = 0

    def begin(self, rows: Sequence[int], refs: Sequence[Ref]) -> None:
        """Let threads make the images of rows, ahead of the stages that ask for them."""
        for row, ref in zip(rows, refs, strict=True):
            if row not in self._made and row not in self._ahead:
                self._ahead[row] = self.threads.submit(self._try, ref)

    def get(self, rows: Sequence[int], refs: Sequence[Ref]) -> list[Picture | RecordError]:
        """Return the images of rows; one that cannot be decoded is the error that its row ends with."""
        for row, ref in zip(rows, refs, strict=True):
            if row in self._made:
                continue
            begun = self._ahead.pop(row, None)
            made = None
            if begun is not None:
                begun.add_done_callback(self._let_go)
                made = begun.result()
            self._made[row] = made or self._make(ref)
        return [self._made[row] for row in rows]

    def forget(self, rows: Sequence[int]) -> None:
        """Let go of the images of a chunk that is done."""
        for row in rows:
            self._made.pop(row, None)
            if (begun := self._ahead.pop(row, None)) is not None and not begun.cancel():
                begun.add_done_callback(self._let_go)

    def close(self) -> None:
        """Let go of everything; what was not begun is not made."""
        self.forget([*self._ahead, *self._made])

    def _try(self, ref: Ref) -> Picture | RecordError | None:
        """Make an image ahead, or return null where there is no room for it now."""
        if self._bytes > MAX_BYTES:
            return None
        try:
            made = self._make(ref)
        except MemoryError:
            return None
        self._count(made, 1)
        return made

    def _let_go(self, begun: "Future[Picture | RecordError | None]") -> None:
        if begun.exception() is None:
            self._count(begun.result(), -1)

    def _count(self, made: Picture | RecordError | None, sign: int) -> None:
        if isinstance(made, Picture):
            with self._lock:
                self._bytes += sign * made.bytes

    def _make(self, ref: Ref) -> Picture | RecordError:
        data = fetch_payload(self.store, ref)
        try:
            image = decode(data) if self.trust and ref["trusted"] else self.jails.get().decode(data)
        except RecordError as error:
            return error
        prepared = {step: prepare(image) for step, prepare in self.prepares.items()}
        return Picture(None if self.bare else image, prepared)
