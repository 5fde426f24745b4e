"""Where a loader's time goes, and whether it or the model is what the other waits for."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

COUNTS = ("batches", "samples", "bytes", "bad")
STAGES = ("plan", "read", "decode", "transform", "wait")
_BUSY = 0.05  # a loop that waits less than this share of its time is not held up


@dataclass(frozen=True)
class Stats:
    """Seconds of each stage since the loader was made, of all threads together, and what came of them.

    plan_s, read_s, decode_s, transform_s  work
    wait_s                                 the training loop waiting for a batch
    wall_s                                 since the first batch was asked for
    """

    batches: int
    samples: int
    bytes: int
    bad: int
    plan_s: float
    read_s: float
    decode_s: float
    transform_s: float
    wait_s: float
    wall_s: float

    @property
    def bottleneck(self) -> str:
        """Name what holds the training loop up: `model`, or the stage of the loader that works most."""
        if self.wait_s < _BUSY * self.wall_s:
            return "model"
        return max(("plan", "read", "decode", "transform"), key=lambda stage: float(getattr(self, f"{stage}_s")))

    def as_text(self) -> str:
        """Return it as a line for people."""
        rate = self.samples / self.wall_s if self.wall_s else 0.0
        work = ", ".join(f"{stage} {getattr(self, f'{stage}_s'):.1f} s" for stage in STAGES)
        share = self.wait_s / self.wall_s if self.wall_s else 0.0
        told = "the model is the bottleneck" if self.bottleneck == "model" else f"the loader is: {self.bottleneck}"
        bad = f", {self.bad} bad" if self.bad else ""
        return f"{self.samples:,} samples{bad}, {rate:,.0f}/s; {work} ({share:.0%} of the time); {told}"

    def to_json(self) -> dict[str, float | str]:
        """Return the figures and the bottleneck as plain values."""
        return {**asdict(self), "bottleneck": self.bottleneck}


class Meter:
    """Adds up what threads do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._started: float | None = None

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count the time of a block as a stage's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        with self._lock:
            self._seconds[stage] += seconds

    def count(self, **counts: int) -> None:
        """Add to the counts."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def start(self) -> None:
        """Begin to count wall time, once."""
        self._started = self._started or time.perf_counter()

    def read(self) -> Stats:
        """Return the figures so far."""
        with self._lock:
            wall_s = time.perf_counter() - self._started if self._started else 0.0
            seconds = [self._seconds[stage] for stage in STAGES]
            plan_s, read_s, decode_s, transform_s, wait_s = seconds
            batches, samples, num_bytes, bad = (self._counts[name] for name in COUNTS)
            return Stats(batches, samples, num_bytes, bad, plan_s, read_s, decode_s, transform_s, wait_s, wall_s)
