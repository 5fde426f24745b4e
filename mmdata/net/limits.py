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
    # The first retry waits this long, each further one twice as long, all with up to half as much again of jitter.
    backoff_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    # A host is a name in urls; an address, which may serve many names, is allowed four times as much.
    per_host: Annotated[int, Field(ge=1, le=64)] = 4
    host_interval_s: Annotated[float, Field(ge=0, le=60)] = 0.25
    crawl_delay_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    # What a server asks for by Retry-After is obeyed up to here; one that asks for more is left alone for that long.
    retry_after_s: Annotated[float, Field(ge=0, le=3600)] = 300.0
    # A host that failed so often in a row rests, then one request tries whether it is back.
    breaker: Annotated[int, Field(ge=1, le=1000)] = 5
    breaker_rest_s: Seconds = 60.0
    # After this many seconds a body must have come in at this rate or better.
    slow_after_s: Seconds = 10.0
    min_bytes_per_s: Annotated[float, Field(ge=0)] = 1024.0

    @property
    def max_bytes(self) -> int:
        """The size cap in bytes."""
        return int(self.max_mib * (1 << 20))
