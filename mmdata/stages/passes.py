"""What a GlobalFilter and a Sink ask of all partitions: a short list of passes, each made of ordinary tasks.

A pass says what one of its tasks does with the rows or files that it is given, and nothing of how they come there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmdata.shards.sorting import SortPlace
from mmdata.shards.units import EmitPlace
from mmdata.storage import Store


@dataclass(frozen=True)
class Scatter:
    """Partition -> bucket files. `prepare` makes the records, `bucket` says where each goes: all together without it."""

    prepare: Callable[[pa.Table], pa.Table]
    bucket: Callable[[pa.Table, int], np.ndarray] | None = None


@dataclass(frozen=True)
class Gather:
    """All records of a bucket -> one table."""

    work: Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Share:
    """All records, and all that the Share before found -> a part of what is to be found.

    For what cannot be cut by buckets, since any two records may belong together: each task looks at all of them and does its
    part of the work. On a local disk records are mapped, so what a task does not look at is not read.

    work  (records of a Scatter without buckets, what the Share before found or null, number of the part, of how many) -> part
    most  of how many parts at most; there are no more than a Scatter makes buckets
    """

    work: Callable[[pa.Table, pa.Table | None, int, int], pa.Table]
    most: int | None = None


@dataclass(frozen=True)
class Fold:
    """A small table of each bucket -> one value for the passes that follow."""

    part: Callable[[pa.Table], pa.Table]
    merge: Callable[[list[pa.Table]], pa.Table]


@dataclass(frozen=True)
class Round:
    """The rows of each partition -> a part of at most 1 MiB; parts added up -> one value of at most 64 MiB.

    Rounds that follow each other look at the same rows again, each with the value of the one before (null in the first).

    count  (rows, value before) -> part    add   some parts -> one; in which order they are added changes nothing
    close  (sum of all, value before) -> value
    done   says by the value before that there is nothing left to find out: the round is then left out
    """

    count: Callable[[pa.Table, pa.Table | None], pa.Table]
    add: Callable[[list[pa.Table]], pa.Table]
    close: Callable[[pa.Table, pa.Table | None], pa.Table]
    done: Callable[[pa.Table], bool]


@dataclass(frozen=True)
class Judge:
    """The rows of one partition and the value of the last Round (null if there was none) -> verdicts on those that go.

    It ends the passes of a GlobalFilter, and is asked in the segment that its verdicts open. Without a Round before it no
    partition waits for another.
    """

    work: Callable[[pa.Table, pa.Table | None], pa.Table]


@dataclass(frozen=True)
class Sort:
    """Copy media, by neighbouring partitions, into tars in the order of the final files, which then read on end.

    Its results are named by what it holds in memory, and go once the final files are committed; these are the same without.

    wanted  says by the folded value and the run's store whether it is worth it
    group   how many partitions a task takes, of how many there are
    work    copies the media of records, and returns the records with references to the copies
    """

    memory: int
    wanted: Callable[[pa.Table, Store], bool]
    group: Callable[[pa.Table, int], int]
    work: Callable[[SortPlace, pa.Table], pa.Table]


@dataclass(frozen=True)
class Emit:
    """Write the final files, one task a unit: the folded value says how many there are and which buckets each needs.

    choose  of the records of one file of a bucket, those of a unit
    """

    count: Callable[[pa.Table], int]
    buckets: Callable[[pa.Table, int, int], Sequence[int]]
    choose: Callable[[pa.Table, int, pa.Table], pa.Table]
    write: Callable[[EmitPlace, pa.Table, pa.Table], dict[str, str]]


Pass = Scatter | Gather | Share | Fold | Round | Judge | Sort | Emit
