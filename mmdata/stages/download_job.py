"""One partition being downloaded: fetch, check, decode, and write in row order.

Fetching runs on one event loop; bytes go to decoder children in batches, and results are spooled to local scratch, so the
bytes of a shard do not depend on which host answered first. What waits to be decoded is bounded: no request starts while too
much does. A url that stands in several rows is fetched and decoded once; each row gets its own sample.
"""

import asyncio
import hashlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmdata.media import Jail
from mmdata.net import TRANSIENT, Failure, Fetched, Fetcher, open_fetcher
from mmdata.schema import OUTCOME, PAYLOAD_COLUMN
from mmdata.shards.img2dataset import Item, Shard, counted_in
from mmdata.shards.words import words
from mmdata.stages.download_facts import facts_of, write_facts
from mmdata.stages.download_kitchen import Dish, Kitchen
from mmdata.stages.verbs import Batch

WAITING_BYTES = 64 << 20  # of bodies that wait for a decoder
_BATCH, _BATCH_BYTES = 32, 8 << 20
_PAUSE_S = 1.0
# Asked about again by a later pass; the others would cost their whole deadline once more.
_PASSING = set(TRANSIENT) - {"timeout_total", "too_slow"}
_INPUT = (pa.field("caption", pa.string()), pa.field("url", pa.string()), pa.field("sample_id", pa.string()))


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; of what several tasks raised the first is raised, so that a full disk is seen as one."""
    try:
        asyncio.run(work)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


class DownloadJob:
    """The rows of one partition, and what becomes of each."""

    def __init__(self, kitchen: Kitchen, batch: Batch) -> None:
        self.kitchen, self.stage, self.place = kitchen, kitchen.stage, batch.place
        self.rows: list[dict[str, Any]] = batch.table.to_pylist()
        self.items: dict[int, Item] = {}
        self.spans: dict[int, tuple[int, int]] = {}
        self.outcomes: list[str | None] = [None] * len(self.rows)
        self.columns: list[dict[str, Any]] = [{} for _ in self.rows]
        self.facts: dict[int, dict[str, Any]] = {}
        self.number = 0
        self._spooled = self._waiting = 0

    def run(self) -> pa.Table:
        """Download everything, write the shard, and return the columns."""
        assert self.place is not None
        with tempfile.TemporaryDirectory(prefix="mmdata-") as folder:
            spool = os.open(Path(folder) / "spool", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                _run(self._fetch_all(spool))
                shard = Shard(Path(folder), self.place.shard, counted_in(len(self.rows)), _INPUT)
                shard.write((index, self._with_data(spool, index)) for index in sorted(self.items))
                place = shard.commit(self.kitchen.ctx.store, self.place.set)
            finally:
                os.close(spool)
        self._write_facts(place)
        return self._table(shard, place)

    async def _fetch_all(self, spool: int) -> None:
        until = time.monotonic() + self.stage.patience_s
        todo: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(self.rows):
            if row["media"] is not None:
                todo[row["url"] or ""].append(index)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.stage.patience_s):
                for number in range(self.stage.passes):
                    self.number = number
                    if number:
                        await asyncio.sleep(_PAUSE_S * number)
                    await self._pass(todo, spool)
                    todo = {url: left for url, rows in todo.items() if (left := [r for r in rows if self._may_pass(r)])}
                    if not todo:
                        break
        except TimeoutError:
            if time.monotonic() < until:
                raise
            self._give_up(f"not done after {self.stage.patience_s:g} s")

    async def _pass(self, todo: Mapping[str, list[int]], spool: int) -> None:
        """Ask about every url once, and decode what comes as it comes."""
        bodies: asyncio.Queue[tuple[list[int], Fetched] | None] = asyncio.Queue()
        async with open_fetcher(self.kitchen.transport(), self.kitchen.policy, self.kitchen.hosts) as fetcher:

            async def one(url: str, indices: list[int]) -> None:
                answer = await fetcher.fetch(url)
                self.facts.update(dict.fromkeys(indices, facts_of(answer, self.number + 1)))
                if (left := self._wanted(indices, answer)) and isinstance(answer, Fetched):
                    self._wait(fetcher, len(answer.body))
                    bodies.put_nowait((left, answer))

            with ThreadPoolExecutor(len(self.kitchen.jails), "decode") as pool:
                async with asyncio.TaskGroup() as cooks:
                    for jail in self.kitchen.jails:
                        cooks.create_task(self._cook(jail, bodies, fetcher, pool, spool))
                    async with asyncio.TaskGroup() as group:
                        for url, indices in todo.items():
                            group.create_task(one(url, indices))
                    for _ in self.kitchen.jails:
                        bodies.put_nowait(None)

    async def _cook(self, jail: Jail, bodies: asyncio.Queue[Any], fetcher: Fetcher, pool: ThreadPoolExecutor, spool: int) -> None:
        """Take bodies in batches until there are no more."""
        loop = asyncio.get_running_loop()
        while (first := await bodies.get()) is not None:
            batch, size = [first], len(first[1].body)
            while len(batch) < _BATCH and size < _BATCH_BYTES and not bodies.empty():
                if (more := bodies.get_nowait()) is None:
                    bodies.put_nowait(None)
                    break
                batch.append(more)
                size += len(more[1].body)
            boxes = None if self.stage.bbox_col is None else [self._boxes(rows, self.stage.bbox_col) for rows, _ in batch]
            answers = [answer for _, answer in batch]
            made = await loop.run_in_executor(pool, self.kitchen.cook, jail, answers, boxes)
            for (indices, answer), dish in zip(batch, made, strict=True):
                self._serve(indices, answer, dish, spool)
            self._wait(fetcher, -size)

    def _boxes(self, rows: list[int], column: str) -> list[list[float]]:
        """Return what any row of a url wants blurred: they share one image."""
        return [box for row in rows for box in self.rows[row][column] or ()]

    def _wait(self, fetcher: Fetcher, num_bytes: int) -> None:
        """Count bytes that wait for a decoder, or are done; while too many wait no request starts."""
        self._waiting += num_bytes
        if self._waiting >= WAITING_BYTES:
            fetcher.hold()
        else:
            fetcher.go_on()

    def _serve(self, indices: list[int], answer: Fetched, dish: "Dish | Failure", spool: int) -> None:
        """Give every row of a url what was made of its body."""
        if isinstance(dish, Failure):
            self._fail(indices, dish.outcome, dish.detail)
            return
        made = dish.made
        span = (self._spooled, len(made.data))
        os.pwrite(spool, made.data, self._spooled)
        self._spooled += len(made.data)
        suffix = self.stage.encode_format if made.ours else {"jpeg": "jpg"}.get(made.format, made.format)
        sizes = (made.width, made.height, made.original_width, made.original_height)
        for index in indices:
            self.outcomes[index] = None
            self.spans[index] = span
            self.items[index] = Item(
                self._own(index), "success", None, suffix=suffix, sizes=sizes, exif=made.exif, sha256=dish.raw_sha256
            )
            self.columns[index] = {
                "raw_sha256": dish.raw_sha256, "sha256": dish.sha256, "format": made.format, "trusted": made.ours,
                "original_width": made.original_width, "original_height": made.original_height,
            }  # fmt: skip

    def _wanted(self, indices: list[int], answer: Fetched | Failure) -> list[int]:
        """Return the rows that want this body; the others end here."""
        if isinstance(answer, Failure):
            self._fail(indices, answer.outcome, answer.detail)
            return []
        if rule := self.kitchen.refusal(answer.body):
            self._fail(indices, "denylisted", rule)
            return []
        asked = self.stage.verify_hash
        if asked is None:
            return indices
        found = hashlib.new(asked.kind, answer.body).hexdigest()
        wrong = [index for index in indices if (self.rows[index][asked.column] or found).lower() != found]
        self._fail(wrong, "hash_mismatch", f"the list has another {asked.kind}")
        return [index for index in indices if index not in wrong]

    def _fail(self, indices: list[int], outcome: str, detail: str) -> None:
        for index in indices:
            self.items[index] = Item(self._own(index), *words(outcome, detail))
            self.outcomes[index] = outcome

    def _give_up(self, why: str) -> None:
        unknown = [i for i, row in enumerate(self.rows) if row["media"] is not None and i not in self.items]
        self._fail(unknown, "throttled", why)

    def _may_pass(self, index: int) -> bool:
        return self.outcomes[index] in _PASSING

    def _own(self, index: int) -> dict[str, object]:
        row = self.rows[index]
        return {"caption": row["text"], "url": row["url"], "sample_id": row["sample_id"]}

    def _with_data(self, spool: int, index: int) -> Item:
        if index not in self.spans:
            return self.items[index]
        offset, size = self.spans[index]
        return replace(self.items[index], data=os.pread(spool, size, offset))

    def _table(self, shard: Shard, place: str) -> pa.Table:
        columns: dict[str, list[Any]] = {field.name: [] for field in self.stage.writes()}
        for index, facts in enumerate(self.columns):
            member = shard.members.get(index)
            ref = None if member is None else {
                "set": place, "tar": f"{shard.name}.tar", "offset": member.offset, "size": member.size,
                "sha256": facts["sha256"], "trusted": facts["trusted"],
            }  # fmt: skip
            columns[PAYLOAD_COLUMN].append(ref)
            for name, values in columns.items():
                if name != PAYLOAD_COLUMN:
                    values.append(facts.get(name))
        arrays = [pa.array(columns[field.name], field.type) for field in self.stage.writes()]
        schema = pa.schema([*self.stage.writes(), pa.field(OUTCOME, pa.string())])
        return pa.table([*arrays, pa.array(self.outcomes, pa.string())], schema)

    def _write_facts(self, place: str) -> None:
        assert self.place is not None
        rows = [
            {
                **facts, "row": index, "url": self.rows[index]["url"], "outcome": self.outcomes[index] or "ok",
                "raw_sha256": self.columns[index].get("raw_sha256"), "sha256": self.columns[index].get("sha256"),
            }
            for index, facts in sorted(self.facts.items())
        ]  # fmt: skip
        write_facts(self.kitchen.ctx.store, place, self.place.shard, rows)
