"""The clock that waits and leases go by. It is an object, so that a test can move it.

Every wait is measured by `monotonic`; wall time is data, written down and never compared.
"""

import time
from dataclasses import dataclass


class Clock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return seconds that only grow, whatever the wall clock does."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since 1970, as the machine believes."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass
class ManualClock(Clock):
    """A clock for tests: time passes when somebody sleeps, and wall time is whatever it is set to."""

    now: float = 1000.0
    wall_now: float = 1_700_000_000.0

    def monotonic(self) -> float:
        """Return the seconds slept so far, from a start."""
        return self.now

    def wall(self) -> float:
        """Return what the wall clock was set to."""
        return self.wall_now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
