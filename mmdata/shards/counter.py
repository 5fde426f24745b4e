"""What long work says of itself: how much is done, every few seconds."""

import time
from collections.abc import Callable

TICK_S = 5.0
Progress = Callable[[int, int], None]


class Counter:
    """Counts what is done, and tells it every few seconds: how much, and how much there is."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self._progress = 0, total, progress
        self._next = time.monotonic() + TICK_S

    def add(self, num: int = 1) -> None:
        """Note that more is done."""
        self.done += num
        if self._progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + TICK_S
            self._progress(self.done, self.total)
