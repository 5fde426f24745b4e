"""A shard's bytes follow from its content; damage is found; others can read it."""

import json
import sys
import tarfile
import threading
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.errors import ConfigError, RunError
from mmdata.shards import open_corpus, verify
from mmdata.shards.img2dataset import Item, Shard
from mmdata.shards.tar import TarFile, member_bytes, tar_bytes
from mmdata.shards.tar import header as tar_header
from mmdata.shards.units import borders, record_bytes, suffix_of
from mmdata.storage import LocalStore, open_store
from tests.corpus import make_corpus


@given(st.lists(st.dictionaries(st.sampled_from(["jpg", "json", "txt"]), st.binary(max_size=2000), min_size=1), max_size=8))
def test_offsets_are_known_before_a_byte_is_written(samples: list[dict[str, bytes]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        tar = TarFile(path)
        placed = [member for number, sample in enumerate(samples) for member in tar.write(f"{number:06d}", sample)]
        tar.close()
        content = sum(member_bytes(len(data)) for sample in samples for data in sample.values())
        assert path.stat().st_size == tar_bytes(content)
        with tarfile.open(path) as read:
            assert [(m.name, m.offset_data, m.size) for m in read] == [tuple(member) for member in placed]


def test_a_tar_has_the_bytes_of_webdatasets_own_writer(tmp_path: Path) -> None:
    from webdataset import TarWriter

    samples = [("000001", {"jpg": b"p" * 5000, "json": b"{}", "txt": b""}), ("x" * 93, {"0.webp": bytes(512), "a.txt": b"\xff"})]
    with (tmp_path / "theirs.tar").open("wb") as file:
        writer = TarWriter(file, encoder=False, mtime=0)
        for key, members in samples:
            writer.write({"__key__": key, **members})
        writer.close()
    with TarFile(tmp_path / "ours.tar") as tar:
        for key, members in samples:
            tar.write(key, members)
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    with pytest.raises(ValueError, match="does not fit into USTAR"):
        tar_header("x" * 101, 1)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tar = TarFile(tmp_path / f"{name}.tar")
        tar.write("000001", {"jpg": b"pixels", "txt": b"text"})
        tar.close()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def sizes(rows: list[tuple[int, int, int]]) -> pa.Table:
    split, order, size = zip(*rows, strict=True)
    return pa.table(
        {"split": pa.array(split, pa.int32()), "order": pa.array(order, pa.uint64()), "bytes": pa.array(size, pa.int64())}
    )


def test_borders_follow_from_sizes() -> None:
    rows = [(0, order, 10_000) for order in range(5)] + [(1, 7, 10_000)]
    units = borders(sizes(rows), max_samples=2, max_bytes=1 << 30).to_pylist()
    assert [(unit["split"], unit["first"], unit["last"], unit["samples"]) for unit in units] == [
        (0, 0, 1, 2), (0, 2, 3, 2), (0, 4, 4, 1), (1, 7, 7, 1),
    ]  # fmt: skip
    by_bytes = borders(sizes(rows), max_samples=100, max_bytes=40_960).to_pylist()
    assert [unit["samples"] for unit in by_bytes] == [3, 2, 1]
    assert all(unit["bytes"] <= 40_960 for unit in by_bytes)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(512, 9000)), min_size=1, max_size=40), st.randoms())
def test_every_sample_lies_in_one_shard_whatever_the_order(rows: list[tuple[int, int, int]], random: object) -> None:
    units = borders(sizes(rows), 3, 1 << 20).to_pylist()
    assert sum(unit["samples"] for unit in units) == len(rows)
    for split, order, _ in rows:
        assert sum(u["split"] == split and u["first"] <= order <= u["last"] for u in units) == 1
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert borders(sizes(shuffled), 3, 1 << 20).to_pylist() == units


def test_record_bytes_count_what_is_written() -> None:
    block = {"payload": {"size": 700}, "text": "é"}
    assert record_bytes({"json": "{}", "blocks": [block], "document": False}) == 1024 + 1536 + 1024


@pytest.mark.parametrize(("data", "suffix"), [(b"\xff\xd8\xff\xe0", "jpg"), (b"\x89PNG\r\n", "png"), (b"RIFF....WEBP", "webp")])
def test_suffixes_come_from_the_bytes(data: bytes, suffix: str) -> None:
    assert suffix_of(data) == suffix


def test_the_img2dataset_layout(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shard = Shard(scratch, 3, 12, (pa.field("caption", pa.string()), pa.field("url", pa.string())))
    good = Item({"caption": "a", "url": "u"}, "success", None, b"\xff\xd8\xff", "jpg", (2, 3, 4, 5), "{}", "ab")
    bad = Item({"caption": None, "url": "v"}, "failed_to_download", "HTTP Error 404: Not Found")
    shard.write([(0, good), (1, bad), (2, good)])
    shard.commit(store, "download")
    assert store.list("download") == ["00003.parquet", "00003.tar", "00003_stats.json"]
    with tarfile.open(tmp_path / "run/download/00003.tar") as tar:
        names = tar.getnames()
        record = json.loads(tar.extractfile("0000300.json").read())  # type: ignore[union-attr]
    assert names == ["0000300.jpg", "0000300.json", "0000300.txt", "0000302.jpg", "0000302.json", "0000302.txt"]
    assert list(record) == [
        "caption", "url", "key", "status", "error_message", "width", "height", "original_width", "original_height",
        "exif", "sha256",
    ]  # fmt: skip
    table = pq.read_table(tmp_path / "run/download/00003.parquet")
    assert table.column("status").to_pylist() == ["success", "failed_to_download", "success"]
    assert table.schema.field("width").type == pa.int32()
    stats = json.loads(store.read("download/00003_stats.json"))
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (3, 2, 1)
    assert stats["status_dict"] == {"success": 2, "HTTP Error 404: Not Found": 1}


def test_numpy_index_records_are_small() -> None:
    from mmdata.shards import BLOCK_DTYPE, SAMPLE_DTYPE

    assert SAMPLE_DTYPE.itemsize == 32
    assert BLOCK_DTYPE.itemsize <= 32
    assert np.dtype(SAMPLE_DTYPE).hasobject is False


def test_a_folder_without_a_manifest_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no corpus.json"):
        open_corpus(str(tmp_path))
    with pytest.raises(ConfigError, match=r"not a corpus: it has no corpus.json"):
        verify(str(tmp_path))


def test_a_whole_corpus_is_whole_whoever_reads_it(tmp_path: Path) -> None:
    url = make_corpus(tmp_path, num=12, val=0.3)
    verdicts = [verify(url, workers=workers) for workers in (1, 3)]
    for verdict in verdicts:
        assert verdict.whole
        assert (verdict.samples, verdict.unlisted) == (12, ())
        assert verdict.bytes == sum(path.stat().st_size for path in Path(url).glob("*.tar"))


def test_verify_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, said, read, asked = make_corpus(tmp_path, num=12), [], LocalStore.open, threading.Event()

    def slow(store: LocalStore, name: str) -> IO[bytes]:
        if name.endswith(".tar"):
            assert asked.wait(10)
        return read(store, name)

    def progress(done: int, total: int) -> None:
        said.append((done, total))
        asked.set()

    monkeypatch.setattr(LocalStore, "open", slow)
    monkeypatch.setattr(sys.modules["mmdata.shards.verify"], "TICK_S", 0.01)
    assert verify(url, workers=1, progress=progress).whole
    assert said[0] == (0, sum(path.stat().st_size for path in Path(url).glob("*.tar")))


@pytest.mark.parametrize(
    ("made", "message"),
    [((), "neither a corpus nor a run folder"), (("run.json",), "no generation of this run has made a corpus")],
)
def test_verify_needs_a_corpus(made: tuple[str, ...], message: str, tmp_path: Path) -> None:
    from mmdata.cli.verify import command

    for name in made:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        command(str(tmp_path))
