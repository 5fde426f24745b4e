"""Fetch media by url, make it the asked size, and keep it in img2dataset's layout.

Decided here: results are spooled to local scratch and written in row order, so the bytes of a shard do not depend on which
host answered first. What is stored was encoded by us, so later stages may decode it without the jail.
"""

import asyncio
import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, BinaryIO, ClassVar

import pyarrow as pa
from pydantic import Field

from mmdata.errors import RecordError
from mmdata.media import Jail, Resize
from mmdata.net import Failure, Fetcher, Guard, Limits, Policy
from mmdata.schema import OUTCOME, PAYLOAD, PAYLOAD_COLUMN
from mmdata.shards.img2dataset import Item, Shard
from mmdata.stages.verbs import Batch, Map, MapFn, Resources, WorkerContext

AGENT = "mmdata/0.1"
_INPUT = (pa.field("caption", pa.string()), pa.field("url", pa.string()), pa.field("sample_id", pa.string()))
# img2dataset's words for what we call by outcome.
_MESSAGES = {
    "opted_out": "Use of image disallowed by X-Robots-Tag directive",
    "hash_mismatch": "hash mismatch",
}
_DECODE = (
    "not_media", "unsupported_format", "truncated_media", "too_many_pixels", "decode_error", "decoder_timeout",
    "decoder_oom", "decoder_crashed",
)  # fmt: skip


class Download(Map, Resize):
    """Write `payload`, the SHA-256 of the original bytes, and the original's size and format.

    How images are made has img2dataset's words (`image_size`, `resize_mode`, ...); clocks, caps and manners are `limits`.

    `contact` (an address or a page) goes into the user agent, so that a server's owner can reach you.
    """

    name: ClassVar[str] = "download"
    whole: ClassVar[bool] = True
    not_in_key: ClassVar[set[str]] = {"resources", "connections", "contact"}

    resources: Resources = Resources(row_s=30)  # the longest Crawl-delay that is obeyed
    limits: Limits = Limits()
    connections: Annotated[int, Field(ge=1, le=4096)] = 64
    contact: str = ""
    robots: bool = True

    def reads(self) -> tuple[str, ...]:
        """Read the url; text and id travel into the layout's own files."""
        return ("url", "text", "media", "sample_id")

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the payload and what only the original bytes can tell."""
        return (
            pa.field(PAYLOAD_COLUMN, PAYLOAD, metadata={"unit": "ref", "meaning": "where the stored bytes lie"}),
            pa.field("raw_sha256", pa.string(), metadata={"unit": "hex", "meaning": "SHA-256 of the bytes downloaded"}),
            pa.field("original_width", pa.int32(), metadata={"unit": "px", "meaning": "width as served, upright"}),
            pa.field("original_height", pa.int32(), metadata={"unit": "px", "meaning": "height as served, upright"}),
            pa.field("format", pa.string(), metadata={"unit": "name", "meaning": "format as served"}),
        )

    def open(self, ctx: WorkerContext) -> MapFn:
        """Return the function that downloads a whole partition."""
        return lambda batch: _Job(self, ctx, batch).run()

    @property
    def agent(self) -> str:
        """The user agent: honest, with the user's contact."""
        return f"{AGENT} (+{self.contact})" if self.contact else AGENT


class _Job:
    """One partition being downloaded."""

    def __init__(self, stage: Download, ctx: WorkerContext, batch: Batch) -> None:
        self.stage, self.ctx, self.place = stage, ctx, batch.place
        self.rows: list[dict[str, Any]] = batch.table.to_pylist()
        self.resize = Resize.model_validate({name: getattr(stage, name) for name in Resize.model_fields})
        self.items: dict[int, Item] = {}
        self.spans: dict[int, tuple[int, int]] = {}
        self.outcomes: list[str | None] = [None] * len(self.rows)
        self.facts: list[dict[str, Any]] = [{} for _ in self.rows]

    def run(self) -> pa.Table:
        assert self.place is not None
        with tempfile.TemporaryDirectory(prefix="mmdata-") as folder, ExitStack() as stack:
            spool = stack.enter_context((Path(folder) / "spool").open("w+b"))
            jails = self._jails(stack)
            pool = stack.enter_context(ThreadPoolExecutor(self.stage.resources.cpus, "decode"))
            asyncio.run(self._fetch_all(spool, jails, pool))
            shard = Shard(Path(folder), self.place.shard, len(self.rows), _INPUT)
            shard.write((index, self._with_data(spool, index)) for index in sorted(self.items))
            place = shard.commit(self.ctx.store, self.place.set)
        return self._table(shard, place)

    def _jails(self, stack: ExitStack) -> SimpleQueue[Jail]:
        jails: SimpleQueue[Jail] = SimpleQueue()
        for _ in range(self.stage.resources.cpus):
            jails.put(stack.enter_context(Jail()))
        return jails

    async def _fetch_all(self, spool: BinaryIO, jails: SimpleQueue[Jail], pool: ThreadPoolExecutor) -> None:
        from mmdata.net.client import open_transport

        stage, turns = self.stage, asyncio.Semaphore(self.stage.connections)
        loop = asyncio.get_running_loop()
        async with open_transport(Guard(self.ctx.allow), stage.limits, stage.agent, stage.connections) as transport:
            fetcher = Fetcher(transport, Policy(stage.limits, stage.agent, stage.robots, connections=stage.connections))

            async def one(index: int, url: str) -> None:
                async with turns:
                    answer = await fetcher.fetch(url)
                    if isinstance(answer, Failure):
                        self._fail(index, answer.outcome, answer.detail)
                        return
                    data = await loop.run_in_executor(pool, self._decode, index, answer.body, jails)
                    if data is not None:
                        self.spans[index] = (spool.seek(0, 2), len(data))
                        spool.write(data)

            jobs = [one(i, row["url"]) for i, row in enumerate(self.rows) if row["media"] is not None]
            await asyncio.gather(*jobs)

    def _decode(self, index: int, body: bytes, jails: SimpleQueue[Jail]) -> bytes | None:
        jail = jails.get()
        try:
            made = jail.transcode(body, self.resize)
        except RecordError as error:
            self._fail(index, error.outcome, error.message)
            return None
        finally:
            jails.put(jail)
        raw = hashlib.sha256(body).hexdigest()
        sizes = (made.width, made.height, made.original_width, made.original_height)
        self.items[index] = Item(
            self._columns(index),
            "success",
            None,
            suffix=self.stage.encode_format,
            sizes=sizes,
            exif=made.exif,
            sha256=raw,
        )
        self.facts[index] = {
            "raw_sha256": raw, "sha256": hashlib.sha256(made.data).hexdigest(), "format": made.format,
            "original_width": made.original_width, "original_height": made.original_height,
        }  # fmt: skip
        return made.data

    def _fail(self, index: int, outcome: str, detail: str) -> None:
        decode = outcome in _DECODE
        message = _MESSAGES.get(outcome, f"{outcome}: {detail}" if not decode else "Image decoding error")
        status = "failed_to_resize" if decode else "failed_to_download"
        self.items[index] = Item(self._columns(index), status, message)
        self.outcomes[index] = outcome

    def _columns(self, index: int) -> dict[str, object]:
        row = self.rows[index]
        return {"caption": row["text"], "url": row["url"], "sample_id": row["sample_id"]}

    def _with_data(self, spool: BinaryIO, index: int) -> Item:
        if index not in self.spans:
            return self.items[index]
        offset, size = self.spans[index]
        spool.seek(offset)
        return replace(self.items[index], data=spool.read(size))

    def _table(self, shard: Shard, place: str) -> pa.Table:
        columns: dict[str, list[Any]] = {field.name: [] for field in self.stage.writes()}
        for index, facts in enumerate(self.facts):
            member = shard.members.get(index)
            ref = None if member is None else {
                "set": place, "tar": f"{shard.name}.tar", "offset": member.offset, "size": member.size,
                "sha256": facts["sha256"], "trusted": True,
            }  # fmt: skip
            columns[PAYLOAD_COLUMN].append(ref)
            for name, values in columns.items():
                if name != PAYLOAD_COLUMN:
                    values.append(facts.get(name))
        arrays = [pa.array(columns[field.name], field.type) for field in self.stage.writes()]
        schema = pa.schema([*self.stage.writes(), pa.field(OUTCOME, pa.string())])
        return pa.table([*arrays, pa.array(self.outcomes, pa.string())], schema)
