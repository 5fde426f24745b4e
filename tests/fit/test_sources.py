"""Finished datasets as sources: nothing is copied, and what was lost before is accounted for."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.config import parse_yaml
from mmdata.engine import Runner, RunResult
from mmdata.errors import ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import parse_plan
from mmdata.schema import OUTCOME
from mmdata.shards import open_corpus
from mmdata.shards.img2dataset import Item, Layout, Shard
from mmdata.shards.payloads import fetch_payload
from mmdata.shards.words import words
from mmdata.stages.foreign import EmbeddedImages, Img2datasetFolder, WebdatasetTars
from mmdata.stages.verbs import Source
from mmdata.storage import LocalStore, digest_bytes, open_store
from tests.fit.web import picture

FAILED = "0" * 32


def read(source: Source) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in source.scan():
        table = source.read(part)
        assert set(table.column_names) == {field.name for field in source.fields()} | {OUTCOME}
        rows += table.to_pylist()
    return rows


def data_of(row: dict[str, Any]) -> bytes:
    assert row["payload"]["trusted"] is False
    return fetch_payload(open_store("."), row["payload"])


def write_img2dataset(folder: Path, layout: str) -> None:
    """Write a finished folder of two shards: two images and a failure each."""
    folder.mkdir()
    columns = (pa.field("uid", pa.string()), pa.field("caption", pa.string()), pa.field("url", pa.string()))
    for number in range(2):
        shard = Shard(folder, number, 10_000, columns, Layout.model_validate({"output_format": layout}))
        shard.write((row, _item(number, row)) for row in range(3))


def _item(number: int, row: int) -> Item:
    own: dict[str, object] = {"uid": f"{number * 3 + row:032x}", "caption": f"text {row}", "url": f"http://example.org/{row}"}
    if row == 1:
        return Item(own, *words("http_4xx", "HTTP 404"))
    data = picture(number * 3 + row)
    return Item(own, "success", None, data, sizes=(300, 200, 600, 400), exif="{}", sha256=digest_bytes(b"raw"))


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
def test_an_img2dataset_folder_is_a_source(tmp_path: Path, layout: str) -> None:
    write_img2dataset(tmp_path / "set", layout)
    (tmp_path / "set/00002.parquet").write_bytes(b"not finished")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*"))
    rows = read(Img2datasetFolder(path=str(tmp_path / "set"), partition_rows=2))
    assert [row[OUTCOME] for row in rows] == [None, "http_4xx", None] * 2
    assert [row["text"] for row in rows] == ["text 0", "text 1", "text 2"] * 2
    assert [row["sample_id"] for row in rows] == [f"{number:032x}" for number in range(6)]
    assert [data_of(row) for row in rows if row["payload"]] == [picture(number) for number in (0, 2, 3, 5)]
    assert (rows[0]["original_width"], rows[0]["raw_sha256"]) == (600, digest_bytes(b"raw"))
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")) == before


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_any_webdataset_folder_is_a_source(tmp_path: Path) -> None:
    facts = {"caption": "from json", "url": "http://example.org/b", "uid": "ab" * 16, "score": 0.5}
    write_tar(tmp_path / "a-0.tar", [
        ("deep/one.jpg", picture(1)), ("deep/one.txt", "héllo\0".encode()), ("deep/one.cls", b"7"),
        ("two.PNG", picture(2, kind="PNG")), ("two.json", json.dumps(facts).encode()),
    ])  # fmt: skip
    write_tar(tmp_path / "a-1.tar", [("three.txt", b"no image"), ("four.webp", picture(4, kind="WEBP")), ("five.jpg", b"")])
    source = WebdatasetTars(path=str(tmp_path), carry={"cls": "int64", "score": "float32"})
    rows = read(source)
    assert [row["text"] for row in rows] == ["héllo", "from json", "no image", None, None]
    assert [row["_repaired"] for row in rows] == ["nul", None, None, None, None]
    assert [(row["cls"], row["score"]) for row in rows[:2]] == [(7, None), (None, 0.5)]
    assert (rows[1]["sample_id"], rows[1]["url"], rows[0]["url"]) == ("ab" * 16, "http://example.org/b", None)
    assert [row[OUTCOME] for row in rows] == [None, None, "bad_row", None, None]
    assert [data_of(rows[number]) for number in (0, 1, 3)] == [picture(1), picture(2, kind="PNG"), picture(4, kind="WEBP")]
    assert read(WebdatasetTars(path=str(tmp_path / "a-{0..1}.tar"), carry=source.carry))[0]["text"] == "héllo"


def test_a_tar_that_is_cut_short_or_no_tar_is_refused_by_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "whole.tar", [("one.jpg", picture(1)), ("two.jpg", picture(2))])
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/bad.tar").write_bytes(data[: len(picture(1)) + 3000])
    with pytest.raises(ConfigError, match=r"bad\.tar"):
        WebdatasetTars(path=str(tmp_path / "cut")).scan()
    (tmp_path / "cut/bad.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ConfigError, match=r"bad\.tar: not a readable tar"):
        WebdatasetTars(path=str(tmp_path / "cut")).scan()
    with pytest.raises(ConfigError, match=r"b-1\.tar: no such tar"):
        WebdatasetTars(path=str(tmp_path / "b-{1..2}.tar")).scan()


def test_an_image_larger_than_a_download_may_be_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdata.shards.foreign.MAX_MEDIA_BYTES", len(picture(1)))
    write_tar(tmp_path / "a.tar", [("one.jpg", picture(1)), ("two.jpg", picture(2, 900, 900))])
    assert [row[OUTCOME] for row in read(WebdatasetTars(path=str(tmp_path)))] == [None, "too_large"]
    pq.write_table(pa.table({"image": [picture(2, 900, 900), picture(1)]}), tmp_path / "a.parquet")
    assert [row[OUTCOME] for row in read(EmbeddedImages(path=str(tmp_path)))] == ["too_large", None]


@pytest.mark.fault("T16")
def test_names_in_a_foreign_tar_are_never_paths(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("../../x.jpg", picture(1)), ("/abs/y.jpg", picture(2))])
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("z.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    rows = read(WebdatasetTars(path=str(tmp_path)))
    assert [data_of(row) for row in rows] == [picture(1), picture(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_parquet_files_with_images_inside_are_a_source(tmp_path: Path) -> None:
    images = [{"bytes": picture(1), "path": "a"}, {"bytes": None, "path": "b"}, {"bytes": picture(3), "path": "c"}]
    table = pa.table({"image": images, "words": ["one", "two", "three"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    rows = read(EmbeddedImages(path=str(tmp_path), text="words", carry={"n": "int32"}, partition_rows=2))
    assert [(row["text"], row["n"], row[OUTCOME]) for row in rows] == [
        ("one", 1, None), ("two", 2, "bad_row"), ("three", 3, None),
    ]  # fmt: skip
    assert [data_of(rows[number]) for number in (0, 2)] == [picture(1), picture(3)]
    two = pa.table({"a": [b"1"], "b": [b"2"]})
    pq.write_table(two, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="2 columns can hold images"):
        EmbeddedImages(path=str(tmp_path)).scan()


@pytest.mark.fault("T10")
def test_a_damaged_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ConfigError, match=r"a\.parquet: not a readable parquet file"):
        EmbeddedImages(path=str(tmp_path)).scan()
    (tmp_path / "a_stats.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.parquet: not a readable parquet file"):
        Img2datasetFolder(path=str(tmp_path)).scan()


def test_a_tar_that_changes_while_a_run_goes_on_stops_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("one.jpg", picture(1))])
    source = WebdatasetTars(path=str(tmp_path))
    (part,) = source.scan()
    write_tar(tmp_path / "a.tar", [("two.jpg", picture(2)), ("three.jpg", picture(2))])
    with pytest.raises(RunError, match=r"a\.tar: it has changed since this run began"):
        source.read(part)


def run(folder: Path, source: str) -> RunResult:
    text = f"name: own\nsource: {source}\nstages: [measure]\nsink: {{shards: {{samples: 10}}}}\n"
    return Runner(parse_plan(parse_yaml(text, "plan.yaml"), folder), str(folder / "run")).execute(InlineExecutor(), quiet=True)


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
def test_a_corpus_is_made_from_an_img2dataset_folder(tmp_path: Path, layout: str) -> None:
    write_img2dataset(tmp_path / "set", layout)
    result = run(tmp_path, "{img2dataset: {path: set}}")
    assert (result.funnel["rows_in"], result.funnel["kept"], result.funnel["dropped"]) == (6, 4, {"http_4xx": 2})
    assert len(open_corpus(str(tmp_path / "run/corpus")).samples) == 4
    assert not (tmp_path / "run/payload").exists()


def test_damage_since_the_plan_was_made_is_found(tmp_path: Path) -> None:
    write_img2dataset(tmp_path / "set", "webdataset")
    source = Img2datasetFolder(path=str(tmp_path / "set"))
    row = next(row for row in read(source) if row["payload"])
    tar = tmp_path / "set/00000.tar"
    data = bytearray(tar.read_bytes())
    data[row["payload"]["offset"] + 9] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(RunError, match="are not what was stored"):
        fetch_payload(LocalStore(str(tmp_path)), row["payload"])
