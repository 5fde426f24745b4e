"""Finished datasets in place of a download: img2dataset's folders, WebDataset tars, parquet files with the images inside.

Decided here: nothing is copied. A payload reference points into the foreign file, which is only read, and its bytes are not
trusted: whoever decodes them does so in the jail. Every row of an img2dataset folder comes, those that it failed to fetch
with the outcome that its message means.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import braceexpand

from mmdata.catalog import Columns, Origin, open_list, to_rows
from mmdata.catalog.text import parse_object
from mmdata.errors import ConfigError
from mmdata.shards.foreign import (
    NO_MEDIA,
    Place,
    Sample,
    file_ref,
    image_column,
    media_member,
    row_refs,
    tar_refs,
    tar_samples,
)
from mmdata.shards.words import SUCCESS, outcome_of
from mmdata.stages.blocks import apart, rows_of, with_blocks
from mmdata.stages.finished import Finished
from mmdata.stages.verbs import SourceSlice

_MAX_JSON_BYTES = 16 << 20


class WebdatasetTars(Finished):
    """Samples of WebDataset tars: an image (jpg, png, webp, ...) with its text in `txt`, or as `caption` or `text` in `json`.

    In place of an image it may be a video (mp4). A sample whose `json` lists `blocks`, as our corpora have them, is a document:
    one row a block, with its media in `POSITION.jpg` and so on.

    path   a folder of tars, or a pattern such as `data/{00000..00099}.tar`
    carry  columns from the sample's `json`, or from the member of that suffix, such as `cls`
    """

    name: ClassVar[str] = "webdataset"

    @property
    def root(self) -> Path:
        """The folder itself, or the pattern's fixed part."""
        path = Path(self.path)
        if path.is_dir():
            return path
        fixed = [part for part in path.parts if "{" not in part and "*" not in part]
        return Path(*path.parts[: len(fixed)]) if len(fixed) < len(path.parts) else path.parent

    def files(self) -> list[Path]:
        """Return the tars, sorted in a folder, in the pattern's order otherwise."""
        path = Path(self.path)
        found = sorted(path.glob("*.tar")) if path.is_dir() else [Path(name) for name in braceexpand(self.path)]
        missing = [str(tar) for tar in found if not tar.exists()]
        if not found or missing:
            raise ConfigError(f"{missing[0] if missing else path}: no such tar", hint="give a folder of .tar files, or a pattern")
        return found

    def digest(self, path: Path) -> str:
        """Return the tar's size and time: hashing it would read every image once more."""
        stat = path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def count(self, path: Path) -> int:
        """Return the number of samples."""
        return len(tar_samples(path))

    def rows(self, path: Path, part: SourceSlice) -> pa.Table:
        """Return one row a sample, or a block of one."""
        samples = tar_samples(path)[part.start : part.stop]
        with path.open("rb") as file:
            records = apart([self._record(file, sample) for sample in samples])
        table = self.made(path, records, part.start)
        found = rows_of(records, samples)
        if found.unrolled:
            ids = table.column("sample_id").take(pa.array([row.sample for row in found.rows]))
            table = self.made(path, [row.record for row in found.rows], part.start)
            table = table.set_column(table.schema.get_field_index("sample_id"), "sample_id", ids)
        refs = tar_refs(path, [row.member for row in found.rows if row.media is not None])
        places = [None if row.media is None else next(refs) for row in found.rows]
        return self.finished(found.marked(table), places, [None] * len(places))

    def _record(self, file: Any, sample: Sample) -> dict[str, Any] | None:  # noqa: ANN401 - a binary file
        texts = {suffix: _text(file, sample, suffix) for suffix in ("json", "txt", *self.carry) if suffix in sample.members}
        facts = parse_object(texts.pop("json")) if "json" in texts else {}
        if facts is None:
            return None
        text = texts.pop("txt", next((facts[name] for name in ("caption", "text") if isinstance(facts.get(name), str)), None))
        ident = next((facts[name] for name in ("uid", "sample_id") if name in facts), None)
        url = facts.get("url") if isinstance(facts.get("url"), str) else None
        record = {**{name: facts.get(name) for name in self.carry}, **texts, "url": url, "text": text, "sample_id": ident}
        return with_blocks(record, facts.get("blocks"), tuple(self.carry))


class Img2datasetFolder(Finished):
    """A folder that img2dataset has filled, as `webdataset`, `files` or `parquet`; unfinished shards are left out."""

    name: ClassVar[str] = "img2dataset"

    def files(self) -> list[Path]:
        """Return the parquet files of finished shards."""
        root = Path(self.path)
        found = [path for path in sorted(root.glob("*.parquet")) if (root / f"{path.stem}_stats.json").exists()]
        if not found:
            raise ConfigError(f"{root}: no finished shard of img2dataset", hint="one has NNNNN.parquet and NNNNN_stats.json")
        return found

    def extra(self) -> tuple[pa.Field, ...]:
        """Return what a download would have told of the original."""
        return (
            pa.field("raw_sha256", pa.string()), pa.field("original_width", pa.int32()), pa.field("original_height", pa.int32()),
        )  # fmt: skip

    def count(self, path: Path) -> int:
        """Return the rows of a shard, those that failed included."""
        return int(pq.read_metadata(path).num_rows)

    def named(self) -> Columns:
        """Return its names."""
        names = pq.read_schema(self.files()[0]).names
        has = {name: name for name in ("caption", "sample_id", "uid") if name in names}
        return Columns(url="url", text=has.get("caption"), sample_id=has.get("uid", has.get("sample_id")))

    def rows(self, path: Path, part: SourceSlice) -> pa.Table:
        """Return the rows of a shard in its order; one that failed has the outcome that its message means."""
        list_file = open_list(self.entry(), path)
        origin = Origin(Path(self.path).name, part.file, part.start)
        table = to_rows(self.entry(), list_file.read(part.start, part.stop), list_file.parts, origin)
        known = pq.read_table(path, columns=_known(path)).slice(part.start, table.num_rows).to_pylist()
        outcomes = [outcome_of(row["status"], row["error_message"]) for row in known]
        for field, name in zip(self.extra(), ("sha256", "original_width", "original_height"), strict=True):
            table = table.append_column(field, pa.array([row.get(name) for row in known], field.type))
        wanted = [number for number, row in enumerate(known, part.start) if row["status"] == SUCCESS]
        places = dict(zip(wanted, self._places(path, wanted, known, part.start), strict=True))
        numbers = range(part.start, part.start + len(known))
        return self.finished(table, [places.get(number, NO_MEDIA) for number in numbers], outcomes)

    def _places(self, path: Path, wanted: list[int], known: list[dict[str, Any]], first: int) -> Iterator[Place]:
        """Yield where the image of each row that was fetched lies."""
        keys = [known[number - first]["key"] for number in wanted]
        tar = path.with_suffix(".tar")
        if tar.exists():
            by_key = {sample.key: sample for sample in tar_samples(tar)}
            yield from tar_refs(tar, [media_member(by_key.get(key, Sample(key, {}))) for key in keys])
        elif path.with_suffix("").is_dir():
            yield from (file_ref(path.with_suffix(""), key) for key in keys)
        else:
            yield from row_refs(path, image_column(path), wanted)


class EmbeddedImages(Finished):
    """Parquet files with an image's bytes in a column, or in the field `bytes` of one, as Hugging Face writes them.

    path   a parquet file or a folder of them
    image  the column; by default the only one that can hold images
    """

    name: ClassVar[str] = "embedded"

    image: str | None = None
    text: str | None = None
    url: str | None = None
    sample_id: str | None = None

    @property
    def root(self) -> Path:
        """The folder itself, or the file's."""
        path = Path(self.path)
        return path if path.is_dir() else path.parent

    def files(self) -> list[Path]:
        """Return the parquet files."""
        path = Path(self.path)
        found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise ConfigError(f"{path}: no parquet file", hint="give a file, or a folder of them")
        return found

    def count(self, path: Path) -> int:
        """Return the rows of a file."""
        image_column(path, self.image)
        return int(pq.read_metadata(path).num_rows)

    def rows(self, path: Path, part: SourceSlice) -> pa.Table:
        """Return one row a row."""
        named = {"url": self.url, "text": self.text, "sample_id": self.sample_id} | {name: name for name in self.carry}
        columns = [name for name in dict.fromkeys(named.values()) if name is not None]
        known = pq.read_table(path, columns=columns).slice(part.start, part.stop - part.start).to_pylist() if columns else []
        records = [{part: row[name] for part, name in named.items() if name is not None} for row in known]
        wanted = range(part.start, part.stop)
        table = self.made(path, records or [{} for _ in wanted], part.start)
        return self.finished(table, list(row_refs(path, image_column(path, self.image), wanted)), [None] * len(wanted))


def _known(path: Path) -> list[str]:
    wanted = ("key", "status", "error_message", "sha256", "original_width", "original_height")
    names = pq.read_schema(path).names
    return [name for name in wanted if name in names]


def _text(file: Any, sample: Sample, suffix: str) -> str | None:  # noqa: ANN401 - a binary file
    """Return a member as text; one that is too long is none."""
    member = sample.members[suffix]
    if member.size > _MAX_JSON_BYTES:
        return None
    file.seek(member.offset)
    return str(file.read(member.size).decode("utf-8", errors="surrogateescape"))
