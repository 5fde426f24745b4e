"""Readers of published formats, on tiny files in the exact published schemas."""

import csv
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.errors import ConfigError
from mmdata.schema import OUTCOME
from mmdata.stages.sources import Catalog, Folder
from mmdata.stages.verbs import Source, SourceSlice
from tests.conftest import encode, write_yaml

ROOT = Path(__file__).parent.parent
UID = "0123456789abcdef0123456789abcdef"

LAION_400M = pa.table({
    "SAMPLE_ID": pa.array([1, 2, 3], pa.int64()),
    "URL": ["http://a/1.jpg", "http://a/2.jpg", ""],
    "TEXT": ["one\0", None, "three"],
    "HEIGHT": pa.array([10.0, float("nan"), 30.0], pa.float64()),
    "WIDTH": pa.array([11.0, 21.0, None], pa.float64()),
    "LICENSE": ["?", "?", None],
    "NSFW": ["UNLIKELY", None, "UNSURE"],
    "similarity": pa.array([0.31, 0.32, 0.33], pa.float64()),
})  # fmt: skip
DATACOMP = pa.table({
    "uid": [UID, UID[::-1]],
    "url": ["http://a/1.jpg", "http://b/2.jpg"],
    "text": ["one", "two"],
    "original_width": pa.array([640, 800], pa.int64()),
    "original_height": pa.array([480, 600], pa.int64()),
    "clip_b32_similarity_score": pa.array([0.2, 0.3], pa.float32()),
    "clip_l14_similarity_score": pa.array([0.25, 0.35], pa.float32()),
    "face_bboxes": pa.array([[[0.1, 0.1, 0.2, 0.2]], []], pa.list_(pa.list_(pa.float64()))),
    "sha256": ["a" * 64, "b" * 64],
})  # fmt: skip


def rows_of(source: Source) -> list[dict[str, object]]:
    return [row for part in source.scan() for row in source.read(part).to_pylist()]


def generic(folder: Path, fields: str) -> Catalog:
    return Catalog(file=str(write_yaml(folder, f"entries:\n  x: {{{fields}}}\n", "catalog.yaml")), entry="x")


def test_laion_400m(tmp_path: Path) -> None:
    pq.write_table(LAION_400M, tmp_path / "part-00000.parquet")
    source = Catalog(file=str(ROOT / "catalogs/web.yaml"), entry="laion400m", data=str(tmp_path))
    rows = rows_of(source)
    assert [row["text"] for row in rows] == ["one", None, "three"]
    assert [row[OUTCOME] for row in rows] == [None, None, "bad_row"]
    assert [row["similarity"] for row in rows] == pytest.approx([0.31, 0.32, 0.33])
    assert rows[1]["NSFW"] is None
    assert len({row["sample_id"] for row in rows}) == 3
    assert all(len(str(row["sample_id"])) == 32 for row in rows)


def test_datacomp_keeps_its_uid(tmp_path: Path) -> None:
    pq.write_table(DATACOMP, tmp_path / f"{UID}.parquet")
    rows = rows_of(Catalog(file=str(ROOT / "catalogs/web.yaml"), entry="datacomp", data=str(tmp_path)))
    assert [row["sample_id"] for row in rows] == [UID, UID[::-1]]
    assert rows[0]["clip_l14_similarity_score"] == pytest.approx(0.25)
    assert rows[1]["original_width"] == 800
    assert [row["face_bboxes"] for row in rows] == [[[0.1, 0.1, 0.2, 0.2]], []]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_box_that_cannot_be_read_costs_its_row(tmp_path: Path, name: str) -> None:
    boxes = [[[0, 0.5, 1, 1]], None, [[0, 0, 1]], [["a", 0, 1, 1]], "none", [[0, 0, 1, float("inf")]]]
    if name == "a.csv":
        cells = [json.dumps(box).replace('"', '""') if box is not None else "" for box in boxes]
        lines = ["url,faces", *(f'http://a/{number},"{cell}"' for number, cell in enumerate(cells))]
    else:
        lines = [json.dumps({"url": f"http://a/{number}", "faces": box}) for number, box in enumerate(boxes)]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = rows_of(generic(tmp_path, f"files: [{name}], carry: {{faces: boxes}}"))
    assert [row["faces"] for row in rows] == [[[0.0, 0.5, 1.0, 1.0]], None, None, None, None, None]
    assert [row[OUTCOME] for row in rows] == [None, None, *["bad_row"] * 4]


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("a.csv", 'url,text\nhttp://a/1,"one, two"\nhttp://a/2,two\n', "files: [a.csv]"),
        ("a.tsv", "one, two\thttp://a/1\ntwo\thttp://a/2\n", "files: [a.tsv], header: [text, url]"),
        ("a.jsonl", '{"url": "http://a/1", "text": "one, two"}\n{"url": "http://a/2", "text": "two"}\n', "files: [a.jsonl]"),
        ("a.json", '[{"url": "http://a/1", "text": "one, two"}, {"url": "http://a/2", "text": "two"}]', "files: [a.json]"),
        ("a.json", '{"image_urls": ["http://a/1", "http://a/2"], "captions": ["one, two", "two"]}',
         "files: [a.json], columns: {url: image_urls, text: captions}"),
    ],
)  # fmt: skip
def test_text_formats(tmp_path: Path, name: str, content: str, fields: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    rows = rows_of(generic(tmp_path, fields))
    assert [(row["url"], row["text"]) for row in rows] == [("http://a/1", "one, two"), ("http://a/2", "two")]


def test_a_compressed_list(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt", encoding="utf-8") as file:
        file.write("url,text\nhttp://a/1,one\n")
    assert [row["text"] for row in rows_of(generic(tmp_path, "files: [a.csv.gz]"))] == ["one"]


def test_a_bad_line_costs_that_line(tmp_path: Path) -> None:
    lines = ['{"url": "http://a/1", "text": "a"}', "{broken", "[" * 10_000, '{"url": "http://a/4", "text": "d"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert [row[OUTCOME] for row in rows_of(generic(tmp_path, "files: [a.jsonl]"))] == [None, "bad_row", "bad_row", None]


def test_partitions_do_not_change_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"url": f"http://a/{number}", "text": str(number)}) for number in range(25)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = generic(tmp_path, "files: [a.jsonl]")
    cut = whole.model_copy(update={"partition_rows": 4})
    assert len(cut.scan()) == 7
    assert rows_of(cut) == rows_of(whole)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_ranges_may_be_read_in_any_order(tmp_path: Path, suffix: str) -> None:
    rows = [{"url": f"http://a/{number}", "text": f'{number},\n"' if number % 7 else "plain"} for number in range(2000)]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    elif suffix == "csv":
        with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("url", "text"), *(row.values() for row in rows)])
    else:
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"a.{suffix}").write_text(json.dumps(rows) if suffix == "json" else lines, encoding="utf-8")
    source, chance = generic(tmp_path, f"files: [a.{suffix}]"), random.Random(0)
    digest = source.scan()[0].digest
    ranges = [(start, chance.randrange(start, 2000) + 1) for start in chance.choices(range(2000), k=30)]
    for start, stop in [*ranges, *sorted(ranges), (0, 256), (256, 300), (300, 1111), (1500, 2000)]:
        table = source.read(SourceSlice(digest, f"a.{suffix}", start, stop))
        assert table.select(["url", "text"]).to_pylist() == rows[start:stop]


def test_a_carried_value_is_judged_by_itself(tmp_path: Path) -> None:
    values = [1, 1.5, 2.0, True, None, "3", "x", 1 << 40, [1]]
    lines = [json.dumps({"url": "http://a/1", "n": value}) for value in values]
    for number, line in enumerate(lines):
        (tmp_path / f"{number}.jsonl").write_text(line + "\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    alone, together = (rows_of(generic(tmp_path, f'files: ["{name}.jsonl"], carry: {{n: int32}}')) for name in ("[0-9]", "a"))
    assert [(row["n"], row[OUTCOME]) for row in alone] == [(row["n"], row[OUTCOME]) for row in together]
    assert [row["n"] for row in together] == [1, None, 2, 1, None, 3, None, None, None]
    assert [row[OUTCOME] for row in together] == [None, "bad_row", None, None, None, None, "bad_row", "bad_row", "bad_row"]


def test_a_text_may_be_written_as_a_dictionary(tmp_path: Path) -> None:
    texts = pa.array(["one", "two", "one"]).dictionary_encode()
    pq.write_table(pa.table({"url": pa.array(["http://a/1"] * 3, pa.large_string()), "text": texts}), tmp_path / "a.parquet")
    assert [row["text"] for row in rows_of(generic(tmp_path, "files: [a.parquet]"))] == ["one", "two", "one"]


def test_documents_unroll_in_order(tmp_path: Path) -> None:
    record = {"images": [None, "http://a/1", None], "texts": ["before", None, "after"]}
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n" + '{"images": ["x"], "texts": ["y"]}\n', encoding="utf-8")
    rows = rows_of(generic(tmp_path, "files: [d.jsonl], shape: documents"))
    assert [(row["position"], row["media"], row["text"], row["url"]) for row in rows[:3]] == [
        (0, None, "before", None), (1, "image", None, "http://a/1"), (2, None, "after", None),
    ]  # fmt: skip
    assert len({row["sample_id"] for row in rows[:3]}) == 1
    assert rows[3][OUTCOME] == "bad_row"  # image and text in one place


def test_texts_are_made_safe(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"url": "http://a/1", "text": "é" * 40_000 + "\0"}) + "\n", encoding="utf-8")
    (row,) = rows_of(generic(tmp_path, "files: [a.jsonl]"))
    assert row["text"] == "é" * 32_768  # 64 KiB, on a character boundary


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"url": [1], "text": ["a"]}), r"a.parquet: column `url` is int64, not text"),
        (pa.table({"address": ["x"]}), r"a.parquet: no column holds the url"),
        (pa.table([["x"], ["y"]], ["url", "url"]), r"two columns have the same name"),
    ],
)
def test_wrong_columns_are_refused_by_file_and_name(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=message):
        generic(tmp_path, "files: [a.parquet]").scan()


def test_an_unreadable_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ConfigError, match=r"a.parquet: not a readable parquet file"):
        generic(tmp_path, "files: [a.parquet]").scan()


def test_a_catalog_cannot_point_outside(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stay inside it"):
        generic(tmp_path, "files: [../secret.csv]").scan()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.csv: no such file"):
        generic(tmp_path, "files: [nothing.csv]").scan()


def test_an_image_folder(tmp_path: Path, gradient: np.ndarray) -> None:
    (tmp_path / "b.png").write_bytes(encode(gradient))
    (tmp_path / "a.jpg").write_bytes(encode(gradient, "JPEG"))
    (tmp_path / "a.txt").write_text("a caption", encoding="utf-8")
    source = Folder(path=str(tmp_path))
    rows = rows_of(source)
    assert [row["text"] for row in rows] == ["a caption", None]
    payload = rows[1]["payload"]
    assert isinstance(payload, dict)
    assert (payload["tar"], payload["size"], payload["trusted"]) == ("b.png", (tmp_path / "b.png").stat().st_size, False)
