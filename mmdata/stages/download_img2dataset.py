"""The download done by img2dataset itself, under the contract of our own: same columns, outcomes and layout.

Decided here: img2dataset runs in a child process for one partition and writes into scratch; what it made is read back, named
by our outcomes and written in row order. What it cannot promise is one table, `PROMISES`, which the documents show.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from mmdata.errors import PartitionError
from mmdata.media import Resize
from mmdata.net.fetch import TRANSIENT, check_url
from mmdata.schema import OUTCOME, PAYLOAD_COLUMN
from mmdata.shards.foreign import tar_samples
from mmdata.shards.img2dataset import Item, Shard, counted_in
from mmdata.shards.words import NOT_RESIZED, SUCCESS, outcome_of, words
from mmdata.stages import img2dataset_child
from mmdata.stages.download import Download
from mmdata.stages.verbs import Batch, Map, MapFn, Resources, WorkerContext
from mmdata.storage import digest_bytes

_INPUT = (pa.field("caption", pa.string()), pa.field("url", pa.string()), pa.field("sample_id", pa.string()))
_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
_RESULTS = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "exif", "sha256")
_LOST = {"status": NOT_RESIZED, "error_message": "Image decoding error"}  # it leaves out rows whose handling raised
_MARGIN_S = 2.0
_PNG_EFFORT = 6


class Promise(NamedTuple):
    """What one engine promises and the other keeps of it."""

    promise: str
    download: str
    img2dataset: str


PROMISES = (
    Promise(
        "Private addresses are not dialled",
        "guarded where sockets are made, on every hop",
        "no: it dials whatever a name leads to",
    ),
    Promise(
        "Only http and https",
        "on every hop",
        "at the first hop; redirects to ftp are followed",
    ),
    Promise(
        "A row ends",
        "connect, headers, idle and total deadlines, minimum rate",
        "no: a slow drip holds its thread; the partition's deadline ends it",
    ),
    Promise(
        "Bodies are capped",
        "32 MiB by default, before and after decoding",
        "no: a body is read whole into memory",
    ),
    Promise(
        "Decoders are jailed",
        "a child without network and files, limits an image",
        "no: decoded where it is downloaded",
    ),
    Promise(
        "A hostile image costs its own row",
        "yes",
        "found by halving the partition, at the price of fetching again",
    ),
    Promise(
        "robots.txt",
        "obeyed, cached for each host",
        "not read",
    ),
    Promise(
        "Opt-outs",
        "every spelling of X-Robots-Tag, TDM, AI preference signals",
        "X-Robots-Tag: four directives in their plain spelling",
    ),
    Promise(
        "Hosts are asked politely",
        "connections and rate bounded a host, Retry-After, breaker",
        "no: all threads may ask one host at once",
    ),
    Promise(
        "Who asks",
        "our name and your contact",
        "a browser's name",
    ),
    Promise(
        "Upright images",
        "EXIF orientation applied",
        "no: stored as the camera lay",
    ),
    Promise(
        "Colours",
        "ICC, CMYK and 16 bit converted",
        "16 bit clipped to 8, profiles dropped",
    ),
    Promise(
        "Same responses, same bytes",
        "yes",
        "yes for a shard, written by us in row order; its pixels follow OpenCV's version",
    ),
    Promise(
        "Outcomes",
        "each cause has its own",
        "by its message: truncated, not an image and unknown formats are one",
    ),
    Promise(
        "The format as served",
        "a column",
        "null",
    ),
    Promise(
        "Retries of what may come right",
        "transient causes only",
        "every cause alike",
    ),
)


class DownloadImg2dataset(Map, Resize):
    """Write what `download` writes, by img2dataset. The page `docs/img2dataset.md` lists what it cannot keep.

    timeout_s  of each wait for the network, as its `timeout`; it has no other clock
    """

    name: ClassVar[str] = "download_img2dataset"
    engine_of: ClassVar[tuple[str, str] | None] = ("download", "img2dataset")
    whole: ClassVar[bool] = True
    transient: ClassVar[tuple[str, ...]] = (*TRANSIENT, "throttled", "tls", "http_4xx", "bad_response")
    not_in_key: ClassVar[set[str]] = {"resources", "connections"}

    resources: Resources = Resources(row_s=30)
    connections: Annotated[int, Field(ge=1, le=4096)] = 64
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    user_agent_token: str | None = None

    def reads(self) -> tuple[str, ...]:
        """Read the url; text and id travel into the layout's own files."""
        return ("url", "text", "media", "sample_id")

    def writes(self) -> tuple[pa.Field, ...]:
        """Write what `download` writes; what img2dataset does not tell is null."""
        return Download(image_size=self.image_size).writes()

    def open(self, ctx: WorkerContext) -> MapFn:
        """Return the function that downloads a whole partition."""
        return lambda batch: _Job(self, ctx, batch).run()


class _Job:
    """One partition being downloaded."""

    def __init__(self, stage: DownloadImg2dataset, ctx: WorkerContext, batch: Batch) -> None:
        self.stage, self.ctx, self.batch = stage, ctx, batch
        self.rows: list[dict[str, Any]] = batch.table.to_pylist()
        self.outcomes: list[str | None] = [None] * len(self.rows)
        self.facts: list[dict[str, Any]] = [{} for _ in self.rows]

    def run(self) -> pa.Table:
        place = self.batch.place
        assert place is not None
        with tempfile.TemporaryDirectory(prefix="mmdata-") as folder:
            scratch = Path(folder)
            items = self._refused()
            asked = [index for index, row in enumerate(self.rows) if row["media"] is not None and index not in items]
            if asked:
                self._fetch(scratch, [self.rows[index]["url"] for index in asked])
                items |= dict(zip(asked, self._made(scratch, asked), strict=True))
            shard = Shard(scratch, place.shard, counted_in(len(self.rows)), _INPUT)
            shard.write((index, items[index]) for index in sorted(items))
            return self._table(shard, shard.commit(self.ctx.store, place.set))

    def _refused(self) -> dict[int, Item]:
        """Return the rows that are not asked for: urllib would open `file:` urls."""
        refused = {index: check_url(row["url"]) for index, row in enumerate(self.rows) if row["media"] is not None}
        return {index: self._failed(index, failure.outcome) for index, failure in refused.items() if failure is not None}

    def _fetch(self, scratch: Path, urls: list[str]) -> None:
        """Let img2dataset download urls into `scratch/out`."""
        (scratch / "out").mkdir()
        table = pa.table({"url": pa.array(urls, pa.string())})
        with pa.ipc.new_file(str(scratch / "0.feather"), table.schema) as writer:
            writer.write_table(table)
        command = [sys.executable, img2dataset_child.__file__, str(os.getpid())]
        seconds = self.stage.resources.deadline_s(len(self.rows)) - _MARGIN_S
        order = json.dumps(self._order(scratch, len(urls)))
        try:
            done = subprocess.run(command, input=order, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise PartitionError(f"img2dataset was not done with {len(urls)} urls within {seconds:g} s") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise PartitionError(f"img2dataset ended with {done.returncode}: {last[:300]}")

    def _order(self, scratch: Path, num: int) -> dict[str, Any]:
        stage = self.stage
        given = {name: getattr(stage, name) for name in Resize.model_fields}
        resize = {name: value for name, value in given.items() if value is not None}
        if stage.encode_format == "png":  # there it says how hard to compress
            resize["encode_quality"] = min(resize.get("encode_quality", _PNG_EFFORT), 9)
        fetch = {
            "thread_count": stage.connections, "timeout": stage.timeout_s, "retries": stage.retries,
            "user_agent_token": stage.user_agent_token, "output_folder": str(scratch / "out"),
            "number_sample_per_shard": counted_in(num),
        }  # fmt: skip
        return {"resize": resize, "fetch": fetch, "directives": _DIRECTIVES, "shard": str(scratch / "0.feather")}

    def _made(self, scratch: Path, asked: list[int]) -> list[Item]:
        """Return what became of each row that was asked for, and note its facts and outcome."""
        told = pq.read_table(scratch / "out/00000.parquet", columns=list(_RESULTS)).to_pylist()
        by_place = {int(row["key"]): row for row in told}
        tar = scratch / "out/00000.tar"
        media = {int(sample.key): sample.members[self.stage.encode_format] for sample in tar_samples(tar)}
        items = []
        with tar.open("rb") as file:
            for place, index in enumerate(asked):
                row = by_place.get(place, _LOST)
                if place not in media or row["status"] != SUCCESS:
                    items.append(self._failed(index, outcome_of(row["status"], row["error_message"]) or "decode_error", row))
                    continue
                file.seek(media[place].offset)
                items.append(self._good(index, row, file.read(media[place].size)))
        return items

    def _good(self, index: int, row: dict[str, Any], data: bytes) -> Item:
        sizes = (row["width"], row["height"], row["original_width"], row["original_height"])
        self.facts[index] = {
            "raw_sha256": row["sha256"], "sha256": digest_bytes(data),
            "original_width": row["original_width"], "original_height": row["original_height"],
        }  # fmt: skip
        suffix = self.stage.encode_format
        return Item(self._columns(index), SUCCESS, None, data, suffix, sizes, row["exif"], row["sha256"])

    def _failed(self, index: int, outcome: str, row: dict[str, Any] | None = None) -> Item:
        self.outcomes[index] = outcome
        status, message = words(outcome) if row is None else (row["status"], row["error_message"])
        return Item(self._columns(index), status, message)

    def _columns(self, index: int) -> dict[str, object]:
        row = self.rows[index]
        return {"caption": row["text"], "url": row["url"], "sample_id": row["sample_id"]}

    def _table(self, shard: Shard, place: str) -> pa.Table:
        for index, member in shard.members.items():
            self.facts[index][PAYLOAD_COLUMN] = {
                "set": place, "tar": f"{shard.name}.tar", "offset": member.offset, "size": member.size,
                "sha256": self.facts[index]["sha256"], "trusted": False,
            }  # fmt: skip
        fields = self.stage.writes()
        columns = [pa.array([facts.get(field.name) for facts in self.facts], field.type) for field in fields]
        return pa.table([*columns, pa.array(self.outcomes, pa.string())], pa.schema([*fields, pa.field(OUTCOME, pa.string())]))


def promises_table() -> str:
    """Return PROMISES as a table in Markdown."""
    lines = ["| promise | `download` | `download_img2dataset` |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(promise)} |" for promise in PROMISES)]) + "\n"
