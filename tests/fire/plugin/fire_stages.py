"""Stages of another package, found by its entry points: they do to their worker what a row's text tells them to."""

import faulthandler
import os
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from mmdata.schema import embedding, embedding_array
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Batch, Filter, FilterFn, Map, MapFn, SourceSlice, Split, SplitFn, WorkerContext, judged


def spring(text: str | None) -> int:
    """Do what a text says; return its length when it says nothing."""
    word = (text or "").split(" ")[0]
    if word == "!segfault":
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    elif word == "!exit":
        os._exit(3)
    elif word == "!loop":
        while True:
            pass
    elif word == "!lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    elif word == "!memory":
        np.ones(4 << 27).sum()  # 4 GiB
    elif word == "!raise":
        raise ValueError("a bug in the stage")
    return len(text or "")


class Trap(Map):
    """Write `trapped`, the length of the text; `pause_s` a row."""

    name: ClassVar[str] = "trap"
    pause_s: float = 0.0

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (pa.field("trapped", pa.int64()),)

    def open(self, ctx: WorkerContext) -> MapFn:
        return self._work

    def _work(self, batch: Batch) -> pa.Table:
        time.sleep(self.pause_s * batch.table.num_rows)
        return pa.table({"trapped": pa.array([spring(text) for text in batch.table.column("text").to_pylist()], pa.int64())})


class TrapFilter(Filter):
    """Keep every row that lets it."""

    name: ClassVar[str] = "trap_filter"

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def reasons(self) -> tuple[str, ...]:
        return ("trapped",)

    def open(self, ctx: WorkerContext) -> FilterFn:
        return lambda batch: judged([None if spring(text) >= 0 else "trapped" for text in batch.table.column("text").to_pylist()])


class TrapSplit(Split):
    """Make two rows of one."""

    name: ClassVar[str] = "trap_split"

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (pa.field("text", pa.string()),)

    def open(self, ctx: WorkerContext) -> SplitFn:
        return self._work

    def _work(self, batch: Batch) -> tuple[np.ndarray, pa.Table]:
        texts = batch.table.column("text").to_pylist()
        for text in texts:
            spring(text)
        index = np.repeat(np.arange(len(texts)), 2)
        return index, pa.table({"text": pa.array([f"{texts[i]}/{n % 2}" for n, i in enumerate(index)], pa.string())})


class VectorFolder(Folder):
    """A folder of images with a line of `vectors.npy` for each."""

    name: ClassVar[str] = "vector_folder"

    def fields(self) -> tuple[pa.Field, ...]:
        return (*super().fields(), pa.field("vector", embedding(3)))

    def read(self, part: SourceSlice) -> pa.Table:
        vectors = np.load(Path(self.path) / "vectors.npy")[part.start : part.stop]
        table = super().read(part)
        return table.set_column(table.schema.get_field_index("vector"), "vector", embedding_array(vectors))
