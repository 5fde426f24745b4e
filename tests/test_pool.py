"""A pool as a source, features beside it, and subset files of what is kept."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.engine import Runner, RunStore
from mmdata.errors import ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan
from mmdata.report.explain import explain
from mmdata.report.fates import fates
from mmdata.schema import OUTCOME
from mmdata.shards import open_corpus, reshard_corpus
from mmdata.shards.corpus import ID_DTYPE
from mmdata.shards.subset import ids_of, sorted_ids, write_subset
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.pool import Pool
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.subset import Subset
from mmdata.stages.verbs import SourceSlice
from tests.conftest import encode
from tests.corpus import draw
from tests.pools import Row, metadata, uid, write_pool

FILES = [[Row("a"), Row("b", near=2)], [Row("c", near=1)]]
FIRST = f"{0:032x}"


def lent(source: Pool, part: SourceSlice, rows: list[int]) -> np.ndarray:
    column = source.lend(part, ["l14_img"], np.array(rows)).column("l14_img").combine_chunks()
    assert column.type == source.fields()[-1].type
    found: np.ndarray = column.flatten().to_numpy().reshape(len(rows), -1)
    return found


def test_rows_are_the_pools(tmp_path: Path) -> None:
    """A url that can be none is a row all the same; an id that could not be named in a subset is not."""
    files = [[Row("a", url="no url"), Row("b"), Row("c")]]
    source = Pool(path=str(write_pool(tmp_path, files, uids={1: "A" * 32})))
    (part,) = source.scan()
    rows = source.read(part).to_pylist()
    assert [row["sample_id"] for row in rows] == [uid(0), rows[1]["sample_id"], uid(2)]
    assert [row[OUTCOME] for row in rows] == [None, "bad_row", None]
    assert [row["url"] for row in rows] == ["no url", *["http://a.example/1.jpg"] * 2]
    assert rows[0]["original_width"] == 640
    assert rows[0]["clip_l14_similarity_score"] == pytest.approx(0.3)
    assert "l14_img" not in rows[0]


def test_a_mended_text_lies_beside_the_one_that_was_published(tmp_path: Path) -> None:
    source = Pool(path=str(write_pool(tmp_path, [[Row("a\0b"), Row("ab"), Row("é" * 40_000)]])))
    rows = source.read(source.scan()[0]).to_pylist()
    assert [row["text"] for row in rows] == ["ab", "ab", "é" * 32_768]
    assert [row["_repaired"] for row in rows] == ["nul", None, "cut"]
    assert [row["_published"] for row in rows] == ["a\0b", None, "é" * 40_000]


def test_any_name_with_parquet_in_it_is_read_and_parts_are_flattened(tmp_path: Path) -> None:
    write_pool(tmp_path / "part_0", [FILES[0]])
    (tmp_path / "part_0" / f"{FIRST}.parquet").rename(tmp_path / "part_0" / "x.parquet.bak")
    write_pool(tmp_path / "part_1", [FILES[1]])
    parts = Pool(path=str(tmp_path)).scan()
    assert [part.file for part in parts] == ["part_0/x.parquet.bak", f"part_1/{FIRST}.parquet"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_features_are_lent_as_they_are(tmp_path: Path, dtype: type, packed: bool) -> None:
    write_pool(tmp_path, FILES, dtype)
    path = tmp_path / f"{FIRST}.npz"
    arrays = dict(np.load(path))
    if packed:
        np.savez_compressed(path, **arrays)
    source = Pool(path=str(tmp_path), features=("l14_img",), partition_rows=1)
    assert source.fields()[-1].type == pa.list_(pa.from_numpy_dtype(dtype), 4)
    first, second, _ = source.scan()
    assert np.array_equal(lent(source, first, [0]), arrays["l14_img"][:1])
    assert np.array_equal(lent(source, second, [0]), arrays["l14_img"][1:])


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    arrays = dict(np.load(path))
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "damaged":
        at = data.index(arrays["l14_img"].tobytes())
        path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    elif how == "short":
        np.savez(path, l14_img=arrays["l14_img"][:1])
    elif how == "without":
        np.savez(path, l14_imgs=arrays["l14_img"])
    elif how == "wide":
        np.savez(path, l14_img=np.zeros((2, 5), np.float16))
    elif how == "objects":
        np.savez(path, l14_img=np.array([["x", None]] * 2, object))
    else:
        path.write_bytes(b"no archive")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no such file, and the features of 2 rows should lie there"),
        ("truncated", "not a readable npz file: File is not a zip file"),
        ("damaged", "not a readable npz file: Bad CRC-32"),
        ("short", "`l14_img` has 1 rows, but the parquet beside it 2"),
        ("without", "holds no array `l14_img`\n  hint: did you mean `l14_imgs`?"),
        ("wide", "but fixed_size_list<item: halffloat>[4] in the first file"),
        ("objects", "`l14_img` holds 2 dimensions of object"),
        ("other", "not a readable npz file: File is not a zip file"),
    ],
)
def test_features_that_cannot_be_right_are_refused(tmp_path: Path, how: str, message: str) -> None:
    """The second of two files is spoilt: what the columns are is read from the first."""
    write_pool(tmp_path, [FILES[1], FILES[0]])
    path = tmp_path / f"{1:032x}.npz"
    spoil(path, how)
    with pytest.raises(ConfigError) as error:
        Pool(path=str(tmp_path), features=("l14_img",)).scan()
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_precision_is_kept(tmp_path: Path) -> None:
    """The first file is in float16, the second in float32: as float16 it would lose something, so it is refused."""
    write_pool(tmp_path, FILES)
    path = tmp_path / f"{1:032x}.npz"
    np.savez(path, l14_img=np.full((1, 4), 0.1, np.float32))
    with pytest.raises(ConfigError, match=r"hint: add `precision: float32` to `pool`"):
        Pool(path=str(tmp_path), features=("l14_img",)).scan()
    source = Pool(path=str(tmp_path), features=("l14_img",), precision="float32")
    first, second = source.scan()
    assert np.array_equal(lent(source, first, [1]), np.load(tmp_path / f"{FIRST}.npz")["l14_img"][1:].astype(np.float32))
    assert np.array_equal(lent(source, second, [0]), np.full((1, 4), 0.1, np.float32))


def test_features_are_not_looked_at_unless_they_are_named(tmp_path: Path) -> None:
    write_pool(tmp_path, FILES)
    spoil(tmp_path / f"{FIRST}.npz", "truncated")
    assert len(Pool(path=str(tmp_path)).scan()) == 2


def test_features_that_change_during_a_run_are_noticed(tmp_path: Path) -> None:
    write_pool(tmp_path, FILES)
    source = Pool(path=str(tmp_path), features=("l14_img",))
    part = source.scan()[0]
    np.savez(tmp_path / f"{FIRST}.npz", l14_img=np.ones((2, 4), np.float16))
    with pytest.raises(RunError, match="it has changed since this run began"):
        source.read(part)
    with pytest.raises(RunError, match="it has changed since this run began"):
        source.lend(part, ["l14_img"], np.array([0]))


def test_a_pool_without_files_or_with_a_column_as_a_feature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no parquet file"):
        Pool(path=str(tmp_path)).fields()
    write_pool(tmp_path, FILES)
    with pytest.raises(ConfigError, match="`text` is a column of the metadata, not a feature"):
        Pool(path=str(tmp_path), features=("text",)).fields()


def test_a_subset_is_what_numpy_would_save(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << 63, (50, 2), np.uint64)
    texts = [f"{high:016x}{low:016x}" for high, low in [*numbers.tolist(), *numbers[:5].tolist(), (3, 2), (3, 1)]]
    ids = sorted_ids(ids_of(pa.array(texts)))
    expected = np.array([(int(text[:16], 16), int(text[16:], 16)) for text in texts], ID_DTYPE)
    expected.sort()
    assert np.array_equal(ids, expected)
    write_subset(tmp_path / "ours.npy", [ids[:10], ids[10:10], ids[10:]], len(ids))
    np.save(tmp_path / "theirs.npy", expected)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    with pytest.raises(ValueError, match="not in order"):
        write_subset(tmp_path / "bad.npy", [ids[10:], ids[:10]], len(ids))
    with pytest.raises(ValueError, match="50 ids were promised, 10 came"):
        write_subset(tmp_path / "bad.npy", [ids[:10]], 50)


def test_runs_with_features_can_be_asked_about(tmp_path: Path) -> None:
    """Features lie in no column file: a report reads them from the pool, or does without."""
    source = Pool(path=str(write_pool(tmp_path / "pool", FILES)), features=("l14_img",))
    plan = Plan(name="all", source=(source,), stages=(Keep(column="clip_l14_similarity_score", at_least=0.1),), sink=Subset())
    Runner(plan, str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    told = explain(str(tmp_path / "run"), uid(1))
    assert "kept" in told
    assert "l14_img" not in told
    table = fates(RunStore(str(tmp_path / "run")), ["l14_img"])
    files = [np.load(path)["l14_img"] for path in sorted((tmp_path / "pool").glob("*.npz"))]
    assert np.array_equal(np.asarray(table.column("l14_img").to_pylist(), np.float16), np.concatenate(files))


def test_a_first_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    write_pool(tmp_path, FILES)
    (tmp_path / f"{FIRST}.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=rf"{FIRST}.parquet: not a readable parquet file"):
        Pool(path=str(tmp_path)).fields()


def test_an_empty_selection_is_an_empty_subset(tmp_path: Path) -> None:
    source = Pool(path=str(write_pool(tmp_path / "pool", FILES)))
    none = Keep(column="clip_l14_similarity_score", at_least=0.9)
    result = Runner(Plan(name="none", source=(source,), stages=(none,), sink=Subset()), str(tmp_path / "run")).execute(
        InlineExecutor(), quiet=True
    )
    found = np.load(Path(str(result.corpus)) / "subset.npy")
    assert (found.dtype, found.shape) == (ID_DTYPE, (0,))


def test_a_plans_subset_reshards_its_corpus(tmp_path: Path) -> None:
    """The same pictures, once as a corpus and once judged by a column alone: the subset names samples of the corpus."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        (images / f"{number}.png").write_bytes(encode(draw("red", "square")))
        (images / f"{number}.txt").write_text("word " * number, encoding="utf-8")
    source = Folder(path=str(images))
    whole = Plan(name="whole", source=(source,), stages=(Measure(),), sink=Shards())
    corpus = Runner(whole, str(tmp_path / "whole")).execute(InlineExecutor(), quiet=True).corpus
    few = Plan(name="few", source=(source,), stages=(Keep(column="position", at_least=0),), sink=Subset())
    subset = Path(str(Runner(few, str(tmp_path / "few")).execute(InlineExecutor(), quiet=True).corpus)) / "subset.npy"
    done = reshard_corpus(str(corpus), subset, str(tmp_path / "out"))
    assert (done.samples, done.missing) == (6, 0)
    assert len(open_corpus(str(tmp_path / "out")).samples) == 6


def test_metadata_written_by_others_is_read(tmp_path: Path) -> None:
    """Columns that a pool lacks are not missed, and texts of large strings are texts."""
    table = metadata(FILES[0], [uid(0), uid(1)]).drop_columns(["face_bboxes", "sha256"])
    table = table.set_column(2, "text", table.column("text").cast(pa.large_string()))
    pq.write_table(table, tmp_path / "a.parquet")
    source = Pool(path=str(tmp_path))
    rows = source.read(source.scan()[0]).to_pylist()
    assert [row["text"] for row in rows] == ["a", "b"]
    assert "sha256" not in rows[0]
