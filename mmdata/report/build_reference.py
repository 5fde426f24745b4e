"""`mmdata reference`: the small plan that makes the reference of an eval set, by where the set lies and what is to be kept.

Decided here: whatever the eval set is, it is read by the source that a plan would name: a folder of images with texts, parquet
with the images inside, WebDataset tars, img2dataset's folders. A parquet without images is read as it is: its texts, hashes
and embeddings become columns by their names. The run lies in `_mmdata/` of the reference's folder, so the same call resumes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.dedupe.kept import check_kept, columns_kept, described, facts_of, items_of, source_of
from mmdata.engine import Executor, Runner, RunResult
from mmdata.errors import ConfigError, RunError
from mmdata.models.spec import OpenClip, ScorerSpec
from mmdata.plan import Plan
from mmdata.schema import embedding, is_embedding
from mmdata.shards.foreign import image_column
from mmdata.shards.reference import FOLDER, REFERENCE, Reference, ReferenceFacts, open_reference
from mmdata.shards.reference_files import check_names, finish_reference, names_in, write_part
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.fingerprint import Fingerprint
from mmdata.stages.foreign import EmbeddedImages, Img2datasetFolder, WebdatasetTars
from mmdata.stages.measure import Measure
from mmdata.stages.reference import ReferenceSink
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Source, Stage
from mmdata.storage import digest_json, open_store

HOME = "_mmdata"
_LOOKS = ("phash", "pdq", "pixels")
_TEXTS = ("caption", "text", "TEXT", "question")
_ROWS = 100_000


@dataclass(frozen=True)
class EvalSet:
    """Where an eval set lies, and how it is read.

    path     folder, parquet file, tars or a pattern of them        name  what the reference is called
    text     the column of a parquet that holds captions; by default `caption`, `text` or `question` if it has one
    model    an open_clip architecture, or folder, for columns of embeddings; with its weights
    """

    path: str
    name: str
    licence: str = "unknown"
    text: str | None = None
    model: str | None = None
    weights: str | None = None

    def source(self) -> Source | None:
        """Return the source that reads it; null for a parquet without images."""
        path = Path(self.path)
        if self.path.endswith(".tar") or "{" in path.name or (path.is_dir() and next(path.glob("*.tar"), None) is not None):
            return WebdatasetTars(path=self.path, licence=self.licence)
        if path.is_dir() and next(path.glob("*_stats.json"), None) is not None:
            return Img2datasetFolder(path=self.path, licence=self.licence)
        if not (found := self.parquets()):
            return Folder(path=self.path, licence=self.licence)
        if not _has_images(found[0]):
            return None
        return EmbeddedImages(path=self.path, licence=self.licence, text=self.text_column(found[0]))

    def parquets(self) -> list[Path]:
        """Return the parquet files that it consists of, if it does."""
        path = Path(self.path)
        return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []

    def text_column(self, path: Path) -> str | None:
        """Return the column of captions."""
        names = pq.read_schema(path).names
        return self.text or next((name for name in _TEXTS if name in names), None)

    def plan(self, source: Source, columns: Sequence[str]) -> Plan:
        """Return the plan that makes the columns."""
        bases = {source_of(name).removesuffix("_views") for name in columns}
        stages: list[Stage] = [Measure()]
        if kinds := tuple(kind for kind in _LOOKS if kind in bases):
            views = ("flip",) if any(name.endswith("_views") for name in columns) else ()
            stages.append(Fingerprint(kinds=kinds, views=views))
        kept = tuple(what for what in ("image", "text") if f"clip_score_{what}_embedding" in bases)
        if kept:
            clip = None if self.model is None else OpenClip(model=self.model, weights=self.weights)
            stages.append(ClipScore(scorer=ScorerSpec(open_clip=clip), embeddings=kept))
        return Plan(name=self.name, source=(source,), stages=tuple(stages), sink=ReferenceSink(columns=tuple(columns)))


def build_reference(given: EvalSet, out: str, columns: Sequence[str], executor: Executor, *, quiet: bool = False) -> Reference:
    """Make the reference of an eval set in a folder that holds nothing else; return it.

    Raises ConfigError for columns that cannot be made of it, and RunError where rows could not be read at all.
    """
    check_names(columns)
    source = given.source()
    if source is None:
        _from_tables(given, out, columns)
        return open_reference(out)
    result = Runner(given.plan(source, columns), f"{out}/{HOME}").execute(executor, quiet=quiet)
    _refuse_empty(given, result)
    assert result.corpus is not None
    _publish(result.corpus, out)
    return open_reference(out)


def _has_images(path: Path) -> bool:
    try:
        image_column(path)
    except ConfigError as error:
        if "0 columns" in error.message:
            return False
        raise
    return True


def _refuse_empty(given: EvalSet, result: RunResult) -> None:
    if not result.funnel["kept"]:
        told = ", ".join(f"{num:,} {reason}" for reason, num in result.funnel["dropped"].items())
        raise RunError(f"{given.path}: no row could be read: {told}", hint="a reference of nothing would find nothing")


def _publish(made: str, out: str) -> None:
    """Bring the files of a finished reference to its folder; `reference.json` comes last and goes first."""
    source, store = open_store(made).sub(FOLDER), open_store(out)
    if store.exists(REFERENCE):
        if store.read(REFERENCE) == source.read(REFERENCE):
            return
        if open_reference(out).facts.generation > 1:
            raise ConfigError(
                f"{out}: samples were taken out of this reference", hint="delete the folder to make it anew, with them"
            )
    store.delete(REFERENCE)
    for name in source.list(""):
        if name != REFERENCE:
            store.put(name, source.read(name))
    store.put(REFERENCE, source.read(REFERENCE))


def _from_tables(given: EvalSet, out: str, columns: Sequence[str]) -> None:
    """Make a reference of parquet files that hold texts, hashes or embeddings."""
    digests: dict[str, str] = {}
    store, kept = open_store(f"{out}/{HOME}"), pa.schema([])
    store.delete(FOLDER)
    for number, table in enumerate(_tables(given, columns)):
        check_kept(columns, {field.name: field for field in table.schema})
        told = columns_kept(table, columns)
        kept = told.schema
        items = {name: items_of(told.column(name), facts_of(name, told.schema.field(name).type)) for name in columns}
        names = names_in(told.column("sample_id").to_pylist(), told.column("position").to_numpy())
        digests |= write_part(store, ".", number, names, items)
    model: dict[str, object] = {"model": given.model, "weights": [] if given.weights is None else [given.weights]}
    made = {name: described(name, facts_of(name, kept.field(name).type), {}, {source_of(name): model}) for name in columns}
    facts = ReferenceFacts(name=given.name, rows=0, licences={Path(given.path).name: given.licence}, columns=made, parts=[])
    finish_reference(store, ".", facts, digests)
    _publish(f"{out}/{HOME}", out)


def _tables(given: EvalSet, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of parquet files, some at a time, under the names of columns, each with an id."""
    for path in given.parquets():
        wanted = {source_of(name): source_of(name) for name in columns}
        if "text" in wanted and (text := given.text_column(path)) is not None:
            wanted["text"] = text
        file, first = pq.ParquetFile(path), 0
        if missing := [name for name in wanted.values() if name not in file.schema_arrow.names]:
            raise ConfigError(f"{path}: has no column `{missing[0]}`", hint=f"it has {', '.join(file.schema_arrow.names)}")
        dims = {
            column: _dim(file, column, path) for column in wanted.values() if _is_vectors(file.schema_arrow.field(column).type)
        }
        for batch in file.iter_batches(_ROWS, columns=list(dict.fromkeys(wanted.values()))):
            table = pa.Table.from_batches([batch])
            ids = [digest_json(["reference", path.name, first + row])[:32] for row in range(table.num_rows)]
            found = {name: _as_kept(table.column(column), dims.get(column)) for name, column in wanted.items()}
            yield pa.table({"sample_id": ids, "position": pa.array(np.zeros(table.num_rows, np.int32)), **found})
            first += table.num_rows


def _is_vectors(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type) and not is_embedding(kind)


def _dim(file: pq.ParquetFile, column: str, path: Path) -> int:
    """Return how many numbers the first vector of a column has."""
    for batch in file.iter_batches(_ROWS, columns=[column]):
        if len(there := batch.column(0).drop_null()):
            return len(there[0])
    raise ConfigError(f"{path}: column `{column}` holds no vector", hint="a reference of nothing would find nothing")


def _as_kept(column: pa.ChunkedArray, dim: int | None) -> pa.ChunkedArray:
    """Return lists of `dim` floating-point numbers as embeddings, and all else as it is."""
    if dim is None:
        return column
    array = column.combine_chunks()
    there = array.drop_null()
    if pa.types.is_list(column.type) and set(there.value_lengths().to_pylist()) - {dim}:
        raise ConfigError("vectors of several lengths cannot be compared", hint="give embeddings of one model")
    flat = pa.array(there.flatten().to_numpy().astype(np.float16))
    lines = pa.FixedSizeListArray.from_arrays(flat, dim)
    places = np.cumsum(array.is_valid().to_numpy(zero_copy_only=False)) - 1
    null = array.is_null().to_numpy(zero_copy_only=False)
    return pa.chunked_array([lines.take(pa.array(places, mask=null))]).cast(embedding(dim))
