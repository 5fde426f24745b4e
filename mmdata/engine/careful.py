"""Finding the row that ends its worker, so that it costs that row alone.

A task whose attempt ended badly is tried again with care: each call of a stage is made in a disposable child. A call that
fails is made again with half of its rows, and so on; a row that fails alone twice ends with an outcome and is noted in
the run folder, so that later attempts leave it out. A stage that fails on row after row is broken: that is the task's
trouble, not the rows'.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmdata.engine.cell import Cell, Failure
from mmdata.engine.confine import confined
from mmdata.engine.worker_cache import WorkerCache
from mmdata.errors import PartitionError
from mmdata.stages.verbs import Batch, ImageWork, Stage
from mmdata.storage import Store

MAX_POISON = 16


class Answer(NamedTuple):
    """What a stage gave for the rows that it could answer, and the outcomes of the others by their place in the batch."""

    result: Any
    poison: dict[int, str]


class Direct:
    """Calls stages in this process; `confine` holds them to their limits."""

    def __init__(self, cache: WorkerCache, *, confine: bool) -> None:
        self.cache, self.confine = cache, confine

    def call(self, key: str, stage: Stage, batch: Batch) -> Answer:
        """Return what the stage gives."""
        work = self.cache.open(key, stage)
        if not self.confine:
            return Answer(work(batch), {})
        with confined(stage.resources, batch.table.num_rows):
            return Answer(work(batch), {})

    def prepare(self, key: str, stage: Stage) -> Callable[[np.ndarray], np.ndarray] | None:
        """Return what a stage does with an image ahead of time, if it does."""
        work = self.cache.open(key, stage)
        return work.prepare if isinstance(work, ImageWork) else None

    def close(self) -> None:
        """Opened stages stay with the worker."""


class Careful:
    """Calls stages in disposable children and finds the rows that end them."""

    def __init__(self, store: Store, allow: tuple[str, ...], ident: str, share: int = 1) -> None:
        self.store, self.allow, self.ident, self.share = store, allow, ident, share
        self._cells: dict[str, Cell] = {}

    def call(self, key: str, stage: Stage, batch: Batch) -> Answer:
        """Return what the stage gives without the rows that end it."""
        if key not in self._cells:
            self._cells[key] = Cell(stage, self.store.url, self.allow, self.share)
        search = _Search(self._cells[key], self.store, f"poison/{key}/{self.ident}", batch)
        return search.run()

    def prepare(self, key: str, stage: Stage) -> None:
        """Nothing is done ahead: the stage is in a child."""

    def close(self) -> None:
        """End the children."""
        for cell in self._cells.values():
            cell.close()


class _Search:
    """One call, halved until the rows that fail are known."""

    def __init__(self, cell: "Cell", store: Store, notes: str, batch: Batch) -> None:
        self.cell, self.store, self.notes, self.batch = cell, store, notes, batch
        self.rows = batch.rows.to_numpy().tolist()
        self.poison = self._known()
        self.pieces: list[tuple[np.ndarray, Any]] = []

    def run(self) -> Answer:
        if self.batch.place is not None:
            return self._whole()
        self._halve(self._healthy(), None)
        return Answer(_join(self.pieces), self.poison)

    def _whole(self) -> Answer:
        """A stage that writes a payload writes it once, for all rows that can be answered; the search writes elsewhere."""
        if isinstance(found := self._call(self._healthy(), None), Failure):
            with tempfile.TemporaryDirectory(prefix="mmdata-search-") as scratch:
                self._halve(self._healthy(), scratch)
            found = self._call(self._healthy(), None)
        if isinstance(found, Failure):
            raise PartitionError(f"`{self.cell.stage.name}`: {found.detail}")
        return Answer(found, self.poison)

    def _halve(self, places: np.ndarray, scratch: str | None) -> None:
        if not len(places):
            return
        found = self._call(places, scratch)
        if not isinstance(found, Failure):
            self.pieces.append((places, found))
        elif len(places) > 1:
            middle = len(places) // 2
            self._halve(places[:middle], scratch)
            self._halve(places[middle:], scratch)
        elif isinstance(again := self._call(places, scratch), Failure):  # a worker may be killed from outside: ask twice
            self._note(int(places[0]), again)
        else:
            self.pieces.append((places, again))

    def _call(self, places: np.ndarray, scratch: str | None) -> Any:  # noqa: ANN401 - what the stage gives, or a Failure
        images = [self.batch.images[place] for place in places] if self.batch.images else ()
        table = self.batch.table.take(pa.array(places, pa.int64()))
        return self.cell.call(replace(self.batch, table=table, images=images), scratch)

    def _healthy(self) -> np.ndarray:
        return np.asarray([place for place in range(len(self.rows)) if place not in self.poison], dtype=np.int64)

    def _known(self) -> dict[int, str]:
        """Return the places of rows that an earlier attempt found."""
        names = {name.removesuffix(".json") for name in self.store.list(self.notes)}
        return {
            place: json.loads(self.store.read(f"{self.notes}/{row}.json"))["outcome"]
            for place, row in enumerate(self.rows)
            if str(row) in names
        }

    def _note(self, place: int, failure: Failure) -> None:
        self.poison[place] = failure.outcome
        note = {"outcome": failure.outcome, "detail": failure.detail}
        self.store.create(f"{self.notes}/{self.rows[place]}.json", json.dumps(note).encode())
        if len(self.store.list(self.notes)) > MAX_POISON:
            self.store.delete(self.notes)  # the rows are not to blame, and must not stay marked
            raise PartitionError(
                f"`{self.cell.stage.name}` fails on more than {MAX_POISON} rows of a partition, last on row "
                f"{self.rows[place]}: {failure.detail}",
                hint="the stage is broken, not the rows: mend it and run the same command again",
            )


def _join(pieces: list[tuple[np.ndarray, Any]]) -> Any:  # noqa: ANN401 - a table, or a Split's (index, table)
    """Join what was given for pieces of a batch, as if it had been one call over the rows that could be answered."""
    answers = [answer for _, answer in pieces]
    if not answers or isinstance(answers[0], pa.Table):
        return pa.concat_tables(answers) if answers else None
    index = np.concatenate([places[answer[0]] for places, answer in pieces])
    return index, pa.concat_tables([answer[1] for answer in answers])
