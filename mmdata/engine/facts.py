"""What a run says of itself while it runs: the shape of `status.json`, which stays stable, and how its numbers are written.

All of it varies from run to run and enters no column file, shard or digest. A null is a thing not known yet. While a
stage's `share` is below 1 its `expected` and all that is `left` are extrapolated from the partitions that are done.
"""

from typing import Literal, TypedDict

STATUS = "status.json"
FORMAT = 1

State = Literal["running", "done", "done with failures", "stopped"]


class StageFacts(TypedDict):
    """One stage; the source is the first and the sink the last, and equal names are numbered.

    rows             that came to it, in the partitions that are done
    computed         of these, by this run; `reused` were there before
    expected         rows when all partitions are done; null for passes, which are counted in tasks
    share            0..1 of its partitions, or of its tasks for passes
    tasks            finished; `in_flight` are with workers (a task of several stages counts for each)
    busy_s           seconds that workers spent in it, summed; `busy_share` of all stages' busy seconds
    rows_per_s       computed rows by the clock since it first ran; `rows_per_busy_s` by busy seconds
    busy_left_s      busy seconds to go; the stage with most of them is the bottleneck
    seconds_left     to go by the clock
    """

    stage: str
    rows: int
    computed: int
    reused: int
    expected: int | None
    share: float | None
    tasks: int
    in_flight: int
    busy_s: float
    busy_share: float
    rows_per_s: float | None
    rows_per_busy_s: float | None
    busy_left_s: float | None
    seconds_left: float | None


class TaskCounts(TypedDict):
    """Tasks: all, finished (`reused` of them found so), failed attempts, given up, with workers."""

    total: int
    done: int
    reused: int
    failed: int
    given_up: int
    in_flight: int


class ErrorFacts(TypedDict):
    """Attempts that failed alike: the message, with `#` where it differed in numbers and ids."""

    message: str
    count: int
    given_up: int


class Facts(TypedDict):
    """The content of `status.json`.

    updated_wall           the driver's wall clock when it wrote this, seconds since 1970
    share                  0..1 of the tasks
    seconds_left           null when no stage with work left has been measured
    seconds_left_at_least  true while a stage that is still to come has not been measured
    bottleneck             the stage that more workers would help most
    outcomes               rows dropped so far by reason, most first
    errors                 most first
    """

    format: int
    run: str
    state: State
    why: str
    updated_wall: float
    seconds: float
    seconds_left: float | None
    seconds_left_at_least: bool
    share: float
    tasks: TaskCounts
    bytes_in_flight: int
    bottleneck: str | None
    outcomes: dict[str, int]
    errors: list[ErrorFacts]
    stages: list[StageFacts]


def error_line(error: ErrorFacts) -> str:
    """Return one kind of error as one line."""
    given_up = f" ({error['given_up']:,} given up)" if error["given_up"] else ""
    return f"{error['count']:,} x {error['message']}{given_up}"


def counted(counts: dict[str, int], most: int) -> str:
    """Return the first counts of a mapping as one phrase."""
    more = len(counts) - most
    shown = [f"{name} {num:,}" for name, num in list(counts.items())[:most]]
    return ", ".join(shown + [f"{more} more"] * (more > 0))


def time_left(facts: Facts) -> str:
    """Return the time left, `~` before an estimate and `>` before one that lacks a stage; empty when unknown."""
    if facts["seconds_left"] is None or facts["state"] != "running":
        return ""
    return f"{'>' if facts['seconds_left_at_least'] else '~'}{duration(facts['seconds_left'])} left"


def duration(seconds: float) -> str:
    """Return seconds in the unit that a person would choose."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} s"


def size(num_bytes: int) -> str:
    """Return bytes in the unit that a person would choose."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"
