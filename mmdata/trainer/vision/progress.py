"""A line on the standard error every ten seconds: how far a training is, how fast, and how long it will take."""

import sys
import time

LINE_S = 10.0


class Progress:
    """Tells of work in equal pieces, `first` of which were done before."""

    def __init__(self, total: int, *, first: int = 0) -> None:
        self.total, self.first = total, first
        self.started = self.last = time.monotonic()

    def tell(self, done: int, facts: str, *, images: int = 0) -> None:
        """Say how far it is, at most every ten seconds, and at the end; `images` were seen in all since the start."""
        now = time.monotonic()
        if now - self.last < LINE_S and done < self.total:
            return
        self.last = now
        seconds = max(now - self.started, 1e-9)
        left = seconds / max(done - self.first, 1) * (self.total - done)
        rate = f", {images / seconds:,.0f} images/s" if images else ""
        sys.stderr.write(f"tokenizer: {done:,} of {self.total:,} ({done / self.total:.0%}), {facts}{rate}, {left:.0f} s left\n")
