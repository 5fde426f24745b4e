"""`write: scatter`: the media of a corpus are sorted first, whatever they lie in; the bytes are those of `gather`."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata import failpoint
from mmdata.engine import Runner, RunResult, scheduler
from mmdata.engine.gc import collect
from mmdata.errors import RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan
from mmdata.shards import open_corpus
from mmdata.shards.payloads import fetch_payload, is_far, kind_of, read_payloads
from mmdata.shards.sorting import SortPlace, sort_media
from mmdata.shards.tar import TarFile
from mmdata.shards.units import RECORD_FIELDS, EmitPlace, borders, write_unit
from mmdata.stages.foreign import EmbeddedImages, WebdatasetTars
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Source
from mmdata.storage import LocalStore, digest_bytes, open_store
from tests.conftest import encode
from tests.flow.small import corpus_digest

MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"  # how such a file begins
MIB = 1 << 20
Way = Literal["auto", "gather", "scatter"]


def noise(number: int, side: int = 260) -> bytes:
    """Return a PNG that does not compress: 3 bytes a pixel."""
    return encode(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8))


def run(source: Source, run_dir: Path, write: Way = "auto", memory_mib: int = 1) -> RunResult:
    sink = Shards(samples=6, write=write, memory_mib=memory_mib)
    plan = Plan(name="scatter", source=(source,), stages=(Measure(),), sink=sink)
    return Runner(plan, str(run_dir)).execute(InlineExecutor(), quiet=True)


def media_folders(run_dir: Path) -> list[Path]:
    return sorted(path for path in run_dir.glob("passes/*/media-*") if any(path.iterdir()))


def stopped(source: Source, run_dir: Path, monkeypatch: pytest.MonkeyPatch, write: Way = "auto") -> list[Path]:
    """Run until the first shard is to be written; return the folders of sorted media."""
    failpoint.reset()
    monkeypatch.setenv("FAILPOINT", "before-unit:1:raise")
    monkeypatch.setattr(scheduler, "TRIES", 1)
    with pytest.raises(RunError, match="fail-point before-unit"):
        run(source, run_dir, write)
    monkeypatch.undo()
    return media_folders(run_dir)


def folder(home: Path) -> Folder:
    """Pictures of 200 KB, and two videos, one of them larger than what is sorted at a time."""
    home.mkdir()
    for number in range(16):
        (home / f"{number:02d}.png").write_bytes(noise(number))
        (home / f"{number:02d}.txt").write_text(f"picture {number}", encoding="utf-8")
    for number, size in ((20, 3000), (21, 3 * MIB)):
        (home / f"{number}.mp4").write_bytes(MP4 + np.random.default_rng(number).bytes(size))
        (home / f"{number}.txt").write_text(f"video {number}", encoding="utf-8")
    return Folder(path=str(home), partition_rows=5)


def tars(home: Path) -> WebdatasetTars:
    """Pairs, a document, one of which a picture is missing, and a video."""
    home.mkdir()
    for number in range(2):
        members: list[tuple[str, bytes]] = []
        for pair in range(6):
            members += [(f"p{pair}.png", noise(10 * number + pair)), (f"p{pair}.txt", f"picture {number}-{pair}".encode())]
        blocks = [
            {"type": "text", "position": 0, "text": "A document begins."}, {"type": "image", "position": 1, "url": "http://a.org/1"},
            {"type": "image", "position": 3}, {"type": "text", "position": 5, "text": "It ends."},
        ]  # fmt: skip
        members += [("whole.json", json.dumps({"sample_id": f"{number:032x}", "blocks": blocks}).encode())]
        members += [("whole.1.png", noise(100 + number)), ("whole.3.jpg", encode(np.full((30, 40, 3), number, np.uint8), "JPEG"))]
        members += [("gap.json", json.dumps({"blocks": blocks}).encode()), ("gap.1.png", noise(200 + number))]
        members += [("film.mp4", MP4 + bytes(100 + number)), ("film.json", json.dumps({"caption": "a film"}).encode())]
        with tarfile.open(home / f"{number}.tar", "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return WebdatasetTars(path=str(home), partition_rows=4)


def rows(home: Path) -> EmbeddedImages:
    """Pictures in a column of a parquet file, in groups of five."""
    home.mkdir()
    table = pa.table({"image": [noise(number) for number in range(16)], "words": [f"picture {number}" for number in range(16)]})
    pq.write_table(table, home / "a.parquet", row_group_size=5)
    return EmbeddedImages(path=str(home), text="words", partition_rows=7)


@pytest.mark.parametrize("make", [folder, tars, rows])
def test_both_ways_give_the_same_bytes_whatever_media_lie_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Source]
) -> None:
    source = make(tmp_path / "source")
    gathered = run(source, tmp_path / "gather", write="gather")
    assert not media_folders(tmp_path / "gather")
    (media,) = stopped(source, tmp_path / "scatter", monkeypatch, write="scatter")
    sizes = [path.stat().st_size for path in media.glob("*.tar")]
    assert len(sizes) > 2
    assert max(sizes) < MIB + 64 * 1024  # headers come on top
    scattered = run(source, tmp_path / "scatter", write="scatter")
    assert corpus_digest(tmp_path / "scatter") == corpus_digest(tmp_path / "gather")
    assert scattered.funnel == gathered.funnel
    assert not media_folders(tmp_path / "scatter")
    assert not run(source, tmp_path / "scatter", write="gather").fresh  # how it was written is not asked again


def test_a_run_may_go_on_the_other_way_or_with_other_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "source")
    run(source, tmp_path / "gather", write="gather")
    others: list[tuple[Way, int]] = [("gather", 1), ("scatter", 2)]
    for write, memory_mib in others:
        run_dir = tmp_path / f"then-{write}"
        stopped(source, run_dir, monkeypatch, "scatter")
        result = run(source, run_dir, write, memory_mib)
        assert (result.generation, result.fresh) == (1, True)
        assert corpus_digest(run_dir) == corpus_digest(tmp_path / "gather")
        assert not media_folders(run_dir)


def test_media_on_a_disk_are_gathered_and_values_of_a_parquet_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not stopped(folder(tmp_path / "folder"), tmp_path / "disk", monkeypatch)
    assert stopped(rows(tmp_path / "rows"), tmp_path / "parquet", monkeypatch)


def test_videos_and_documents_of_a_webdataset_folder_are_samples(tmp_path: Path) -> None:
    source = tars(tmp_path / "source")
    result = run(source, tmp_path / "run", write="scatter")
    assert result.funnel["dropped"] == {"bad_row": 2}  # of `gap` a picture has no member: the document goes on without it
    corpus = open_corpus(str(tmp_path / "run/corpus"))
    found = {index: corpus.read(index) for index in range(len(corpus.samples))}
    documents = [index for index, members in found.items() if "3.jpg" in members]
    assert sorted(corpus.sample_id(index) for index in documents) == [f"{number:032x}" for number in range(2)]
    for index in documents:
        number = int(corpus.sample_id(index), 16)
        assert set(found[index]) == {"json", "1.png", "3.jpg"}
        assert found[index]["1.png"] == noise(100 + number)
        blocks = json.loads(found[index]["json"])["blocks"]
        assert [(block["type"], block["position"]) for block in blocks] == [("text", 0), ("image", 1), ("image", 3), ("text", 5)]
        assert (blocks[0]["text"], blocks[1]["url"]) == ("A document begins.", "http://a.org/1")
        assert corpus.blocks_of(index)["kind"].tolist() == [0, 1, 1, 0]
    films = [index for index, members in found.items() if "mp4" in members]
    assert sorted(found[index]["mp4"] for index in films) == [MP4 + bytes(100), MP4 + bytes(101)]
    for index in films:
        assert (found[index]["txt"], json.loads(found[index]["json"])["width"]) == (b"a film", None)
        assert corpus.blocks_of(index)[["kind", "suffix"]].tolist()[0] == (2, 6)


def test_our_own_corpora_are_sources(tmp_path: Path) -> None:
    run(tars(tmp_path / "source"), tmp_path / "first")
    first = open_corpus(str(tmp_path / "first/corpus"))
    again = run(WebdatasetTars(path=str((tmp_path / "first/corpus").resolve())), tmp_path / "second")
    assert again.funnel["dropped"] == {}
    second = open_corpus(str(tmp_path / "second/corpus"))
    assert sorted(first.sample_ids.tolist()) == sorted(second.sample_ids.tolist())
    media = [{tuple(sorted(hash(data) for name, data in corpus.read(index).items() if name != "json")) for index in range(16)}
             for corpus in (first, second)]  # fmt: skip
    assert media[0] == media[1]


def test_what_is_left_of_a_run_killed_before_it_frees_media_is_freed_by_gc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run_dir = folder(tmp_path / "source"), tmp_path / "run"
    assert stopped(source, run_dir, monkeypatch, write="scatter")
    assert not [name for name in collect(str(run_dir)).objects if "media-" in name]  # the run goes on with them
    failpoint.reset()
    monkeypatch.setenv("FAILPOINT", "before-free:1:raise")
    run(source, run_dir, write="scatter")
    monkeypatch.undo()
    assert media_folders(run_dir)
    digest = corpus_digest(run_dir)
    freed = collect(str(run_dir)).objects
    assert freed
    assert all("/media-1/" in name for name in freed)
    assert not media_folders(run_dir)
    assert not run(source, run_dir, write="scatter").fresh
    assert corpus_digest(run_dir) == digest


def test_damage_to_media_that_were_sorted_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, run_dir = folder(tmp_path / "source"), tmp_path / "run"
    (media,) = stopped(source, run_dir, monkeypatch, write="scatter")
    tar = sorted(media.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"media-1/0\.0\.tar: the \d+ bytes at \d+ are not what was stored"):
        run(source, run_dir, write="scatter")


def records_of(home: Path, num: int, size: int) -> pa.Table:
    """Return records of pairs whose media, of `size` bytes each, lie in a tar in another order than the corpus's."""
    random, found = np.random.default_rng(num), []
    with TarFile(home / "payload.tar") as tar:
        for number in range(num):
            data = b"\xff\xd8\xff" + random.bytes(size - 3)
            (member,) = tar.write(f"{number:06d}", {"jpg": data})
            ref = {"set": home.as_posix(), "tar": "payload.tar", "offset": member.offset, "size": size}
            ref |= {"sha256": digest_bytes(data), "trusted": True}
            block = {"kind": "image", "text": "a text", "payload": ref, "position": 0, "width": 1, "height": 1}
            record = {"order": int(random.integers(0, 1 << 62)), "sample_id": f"{number:032x}", "split": 0, "document": False}
            found.append({**record, "json": "{}", "blocks": [block], "bytes": size + 2048})
    return pa.Table.from_pylist(found, schema=pa.schema(RECORD_FIELDS))


def test_media_in_an_object_store_are_sorted_and_gathered_alike(tmp_path: Path) -> None:
    """fsspec's `memory` stands for a store that answers late: several reads are on their way at a time."""
    import fsspec

    (tmp_path / "local").mkdir()
    records = records_of(tmp_path / "local", 60, 400_000)
    fsspec.filesystem("memory").pipe_file("/media/payload.tar", (tmp_path / "local/payload.tar").read_bytes())
    local = [row["blocks"][0]["payload"] for row in records.to_pylist()]
    refs = [{**ref, "set": "memory://media"} for ref in local]
    store = LocalStore(str(tmp_path))
    assert dict(read_payloads(store, refs)) == dict(read_payloads(store, local))
    assert is_far(kind_of("memory://media"), store)
    refs[30] |= {"sha256": "0" * 64}
    with pytest.raises(RunError, match=r"memory://media/payload\.tar: the 400000 bytes at \d+ are not what was stored"):
        list(read_payloads(store, refs))


def test_memory_is_bounded_by_the_key_and_not_by_the_corpus(tmp_path: Path) -> None:
    memory, peaks = 4 * MIB, []
    for num in (128, 1024):  # 8 and 64 MiB of media
        home = tmp_path / str(num)
        home.mkdir()
        records, store = records_of(home, num, 64 * 1024), LocalStore(str(home))
        tracemalloc.start()
        sort = SortPlace(store, "media", 0, home, memory)
        found = sort_media(sort, records)
        sorting = tracemalloc.get_traced_memory()[1]
        unit = borders(found, num, 1 << 40).to_pylist()[0] | {"bytes": (num * (65536 + 512 + 2048) // 10240 + 1) * 10240}
        tracemalloc.reset_peak()
        write_unit(EmitPlace(store, "corpus", 0, home, memory), "train-00000", unit, found)
        peaks.append((sorting, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        assert len(list((home / "media").glob("*.tar"))) == num * 64 * 1024 // memory
    for peak in (*peaks[0], *peaks[1]):
        assert memory < peak < memory + 24 * MIB
    assert max(peaks[1]) < max(peaks[0]) + 4 * MIB


def test_a_sort_keeps_every_record_and_points_to_the_same_bytes(tmp_path: Path) -> None:
    records, store = records_of(tmp_path, 40, 100_000), open_store(str(tmp_path))
    found = sort_media(SortPlace(store, "media", 3, tmp_path, MIB), records)
    before = {row["sample_id"]: row for row in records.to_pylist()}
    assert found.schema == records.schema
    assert found.column("order").to_pylist() == sorted(records.column("order").to_pylist())
    for row in found.to_pylist():
        old, new = before.pop(row["sample_id"])["blocks"][0]["payload"], row["blocks"][0]["payload"]
        assert new["set"] == "media"
        assert new["tar"] in {"3.0.tar", "3.1.tar", "3.2.tar", "3.3.tar"}
        assert fetch_payload(store, new) == fetch_payload(store, old)
    assert not before
