"""The limits of one fetch: one object, safe defaults, no way to say `unlimited`."""

from typing import Annotated

from pydantic import Field

from mmdata.config import Model

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Limits(Model):
    """Clocks, sizes and manners of fetching; every value is recorded with the stage's key."""

    connect_s: Seconds = 10.0
    headers_s: Seconds = 15.0
    idle_s: Seconds = 10.0
    total_s: Seconds = 60.0
    max_mib: Annotated[float, Field(gt=0, le=4096)] = 32.0
    redirects: Annotated[int, Field(ge=0, le=10)] = 5
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    per_host: Annotated[int, Field(ge=1, le=64)] = 4
    host_interval_s: Annotated[float, Field(ge=0, le=60)] = 0.25
    breaker: Annotated[int, Field(ge=1, le=1000)] = 5
    # After this many seconds a body must have come in at this rate or better.
    slow_after_s: Seconds = 10.0
    min_bytes_per_s: Annotated[float, Field(ge=0)] = 1024.0

    @property
    def max_bytes(self) -> int:
        """The size cap in bytes."""
        return int(self.max_mib * (1 << 20))
