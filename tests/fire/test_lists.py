"""List files that are damaged, lie about themselves, or do not end (faults T09, T10, T12, T13)."""

import ast
import gzip
import itertools
import json
import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.catalog import UnreadableError
from mmdata.errors import ConfigError, RunError
from mmdata.schema import OUTCOME
from mmdata.stages.text_rules import TextRules
from tests.fire.lists import entry, measured, rows_of, run_plan
from tests.fire.seeds import seeds

Figure = Callable[[str, object], None]
NUM = 12_345
GOOD = pa.table({"url": [f"http://host/{k}.jpg" for k in range(NUM)], "text": [f"a caption {k}" for k in range(NUM)]})
SCAN = """
from mmdata.catalog import UnreadableError
from mmdata.stages.sources import Catalog
def main(*files):
    refused = []
    for file in files:
        try:
            Catalog(file=file, entry="x").scan()
        except UnreadableError as error:
            refused.append(str(error).splitlines()[0])
    return refused
"""


@pytest.fixture(scope="module")
def base() -> float:
    """What a process that scans no list holds at its peak, in MiB."""
    return measured(SCAN)[1]


def write_parquet(path: Path, table: pa.Table = GOOD, **options: object) -> bytes:
    pq.write_table(table, path, write_page_checksum=True, compression="NONE", use_dictionary=False, **options)
    return path.read_bytes()


def forge_rows(data: bytes, claim: int, places: int) -> bytes:
    """Return a parquet file whose footer says `claim` rows, in the first `places` of the four where it says so."""

    def varint(number: int) -> bytes:
        rest, out = 2 * number, b""  # zigzag
        while rest >= 128:
            out, rest = out + bytes([rest & 127 | 128]), rest >> 7
        return out + bytes([rest])

    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8]
    assert footer.count(b"\x16" + varint(NUM)) == 4  # the file, its row group, two column chunks
    forged = footer.replace(b"\x16" + varint(NUM), b"\x16" + varint(claim), places)
    return data[: -8 - size] + forged + len(forged).to_bytes(4, "little") + b"PAR1"


def damaged(good: bytes) -> dict[str, bytes]:
    flipped = bytearray(good)
    flipped[2000] ^= 1
    return {
        "empty": b"", "cut in the footer": good[:-100], "cut in a page": good[: len(good) // 2], "cut at the end": good[:-1],
        "corrupt footer": good[:-200] + bytes(192) + good[-8:], "footer beyond the file": good[:-8] + b"\xff\xff\xff\x7fPAR1",
        "page checksum": bytes(flipped), "10^12 rows": forge_rows(good, 10**12, 4),
        "10^12 rows, once": forge_rows(good, 10**12, 1), "5*10^8 rows": forge_rows(good, 5 * 10**8, 4),
    }  # fmt: skip


@pytest.mark.fault("T09")
@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        ({"url": [1], "text": ["a"]}, "", r"b.parquet: column `url` is int64, not text"),
        ({"url": ["u"], "text": [["a"]]}, "", r"b.parquet: column `text` is list<element: string>, not text"),
        ({"address": ["u"]}, "", r"b.parquet: no column holds the url"),
        ({"url": ["u"]}, "columns: {text: title}", r"b.parquet: has no column `title`"),
        ({"url": ["u"]}, "carry: {score: float32}", r"b.parquet: has no column `score`"),
        ({"url": ["u"], "when": [{"a": 1}]}, "carry: {when: string}", r"b.parquet: column `when` is struct.*not text, a number"),
        ({"url": ["u"], "more": [1]}, "columns: {captions: [more]}", r"b.parquet: column `more` is int64, not text or lists"),
        ({"images": ["u"], "texts": [["a"]]}, "shape: documents", r"b.parquet: column `images` is string, not lists of text"),
        ([["u"], ["v"]], "", r"b.parquet: two columns have the same name: \['url', 'url'\]"),
    ],
)  # fmt: skip
def test_T09_a_column_that_cannot_serve_stops_the_plan(tmp_path: Path, table: object, fields: str, message: str) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"url": ["http://host/x"], "text": ["a"]}))
    wrong = pa.table(table) if isinstance(table, dict) else pa.table(table, ["url", "url"])
    write_parquet(tmp_path / "b.parquet", wrong)
    files = "b.parquet" if fields else "*.parquet"
    with pytest.raises(ConfigError, match=message):
        run_plan(tmp_path, entry(tmp_path, ", ".join(filter(None, (f'files: ["{files}"]', fields)))))
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("T09")
@pytest.mark.parametrize("nulls", [pa.nulls(3), pa.nulls(3, pa.string())])
def test_T09_a_column_of_nulls_costs_its_rows(tmp_path: Path, nulls: pa.Array) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"url": nulls, "text": nulls}))
    result = run_plan(tmp_path, entry(tmp_path, "files: [a.parquet]"), TextRules())
    assert result.funnel["dropped"] == {"bad_row": 3}


@pytest.mark.fault("T10")
def test_T10_a_damaged_parquet_is_refused_by_name_and_allocates_nothing(
    tmp_path: Path, base: float, record_property: Figure
) -> None:
    good = write_parquet(tmp_path / "good.parquet")
    sources = []
    for number, (what, data) in enumerate(damaged(good).items()):
        home = tmp_path / str(number)
        home.mkdir()
        (home / "good.parquet").write_bytes(good)
        (home / "bad.parquet").write_bytes(data)
        sources.append(entry(home, 'files: ["*.parquet"]'))
        with pytest.raises(UnreadableError, match=r"bad.parquet: "):
            run_plan(home, sources[-1])
        assert not (home / "run").exists(), what
    refused, peak, seconds = measured(SCAN, *(source.file for source in sources))
    num = len(ast.literal_eval(refused))
    record_property("figure", f"{num} of {len(sources)} damaged parquets refused in {seconds:.2f} s, {peak - base:.0f} MiB")
    assert num == len(sources)
    assert peak - base < 64


@pytest.mark.fault("T10")
@pytest.mark.parametrize("what", ["page checksum", "5*10^8 rows", "cut in a page"])
def test_T10_others_go_on_only_if_asked(tmp_path: Path, what: str) -> None:
    good = write_parquet(tmp_path / "a.parquet", GOOD.slice(0, 30))
    (tmp_path / "b.parquet").write_bytes(damaged(write_parquet(tmp_path / "b.parquet"))[what])
    (tmp_path / "c.parquet").write_bytes(good)
    source = entry(tmp_path, 'files: ["*.parquet"]', skip_unreadable=True, partition_rows=20)
    with pytest.warns(UserWarning, match=r"b.parquet: .*; the file is left out and counts as one bad row"):
        result = run_plan(tmp_path, source, TextRules())
    assert (result.funnel["rows_in"], result.funnel["kept"], result.funnel["dropped"]) == (61, 60, {"bad_row": 1})


@pytest.mark.fault("T10")
def test_T10_damage_that_comes_after_the_plan_is_named_too(tmp_path: Path) -> None:
    data = bytearray(write_parquet(tmp_path / "a.parquet"))
    source = entry(tmp_path, "files: [a.parquet]")
    part = source.scan()[0]
    data[2000] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(RunError, match=r"a.parquet: it has changed since this run began"):
        source.read(part)
    rows = source.model_copy(update={"skip_unreadable": True}).read(part)
    assert rows.column(OUTCOME).to_pylist() == ["bad_row"] * 10_000


class Touch:
    """A pickle of this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.fault("T10")
def test_T10_extension_types_are_neither_read_nor_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    claims = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Touch(marker))}
    strange = pa.field("strange", pa.string(), metadata=claims)
    url, known = pa.field("url", pa.string()), pa.field("url", pa.json_())
    for name, fields in (
        ("unknown", [strange.with_name("url"), strange]),
        ("known", [known, strange]),
        ("unused", [url, strange]),
    ):
        columns = [pa.array(["http://host/x"]), pa.array(["y"])]
        storage = [pa.ExtensionArray.from_storage(f.type, c) if f is known else c for f, c in zip(fields, columns, strict=True)]
        pq.write_table(pa.table(storage, pa.schema(fields)), tmp_path / f"{name}.parquet")
    assert [row["url"] for row in rows_of(entry(tmp_path, "files: [unused.parquet]"))] == ["http://host/x"]
    for name in ("known", "unknown"):
        with pytest.raises(UnreadableError, match=rf"{name}.parquet: column `url` has an extension type"):
            entry(tmp_path, f"files: [{name}.parquet]").scan()
    assert not marker.exists()


@pytest.mark.fault("T10")
def test_T10_any_damaged_bytes_end_as_rows_or_as_a_named_error(tmp_path: Path, record_property: Figure) -> None:
    source, refused, read = entry(tmp_path, "files: [b.parquet]"), 0, 0
    for seed, kind, version, checksum in itertools.product(seeds(40, 400), ("snappy", "zstd"), ("1.0", "2.0"), (True, False)):
        options = {"compression": kind, "data_page_version": version, "write_page_checksum": checksum}
        pq.write_table(GOOD.slice(0, 200), tmp_path / "b.parquet", **options)
        data, chance = bytearray((tmp_path / "b.parquet").read_bytes()), random.Random(f"{seed} {options}")
        for place in chance.sample(range(len(data)), chance.choice((1, 1, 8))):
            data[place] = chance.randrange(256)
        (tmp_path / "b.parquet").write_bytes(data)
        try:
            rows_of(source)
            read += 1
        except (ConfigError, RunError) as error:
            refused += "b.parquet" in str(error)
    record_property("figure", f"parquets with random damage: {refused} refused by name, {read} read, 0 other ends")
    assert refused + read == 8 * len(seeds(40, 400))
    assert refused > read


@pytest.mark.fault("T12")
def test_T12_a_bad_json_line_costs_that_line(tmp_path: Path) -> None:
    good = {"url": "http://host/x", "text": "a"}
    lines = [
        json.dumps(good), "{broken", "[" * 10_000, '{"url": ' * 10_000, '"text"', "null", '{"url": "http://host/x", "n": NaN}',
        '{"url": "http://host/x", "n": -Infinity}', '{"url": "http://host/x", "n": 1e999}',
        '{"url": "http://host/x", "n": ' + "9" * 10_000_000 + "}", '{"url": "http://host/x", "n": 0.' + "3" * 10_000_000 + "}",
        '{"url": "http://host/x", "url": "http://other/y"}', '{"url": "http://host/x", "deep": {"a": 1, "a": 2}}',
        '{"url": "http://host/\x00", "text": "a"}', '{"url": "http://host/x"} trailing', json.dumps(good),
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = run_plan(tmp_path, entry(tmp_path, "files: [a.jsonl]"))
    assert (result.funnel["rows_in"], result.funnel["kept"]) == (len(lines), 2)
    assert result.funnel["dropped"] == {"bad_row": len(lines) - 2}


@pytest.mark.fault("T12")
@pytest.mark.parametrize(
    "text", ['[{"url": NaN}]', '[{"url": 1, "url": 2}]', "[" * 100_000, '{"a": [1], "b": []}', "7", '[{"url"']
)
def test_T12_a_json_list_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(UnreadableError, match=r"a.json: "):
        entry(tmp_path, "files: [a.json]").scan()


@pytest.mark.fault("T12")
def test_T12_a_list_of_nothing_but_bad_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("url,text\nhttp://host/x,a\n", encoding="utf-8")
    with pytest.raises(
        UnreadableError, match=r"a.jsonl: none of its 2 rows can be read as jsonl\n.*is the entry's `format` right"
    ):
        entry(tmp_path, "files: [a.jsonl]").scan()


@pytest.mark.fault("T13")
@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_T13_a_compressed_list_that_was_cut_short_is_named(tmp_path: Path, name: str, share: float) -> None:
    lines = [f"http://host/{random.Random(k).random()}" for k in range(5000)]
    sep = "\t" if name.startswith("a.tsv") else ","
    text = {
        "a.jsonl.gz": "".join(json.dumps({"url": line, "text": "a"}) + "\n" for line in lines),
        "a.json.gz": json.dumps([{"url": line} for line in lines]),
    }.get(name, f"url{sep}text\n" + "".join(f"{line}{sep}a\n" for line in lines))
    data = gzip.compress(text.encode())
    (tmp_path / name).write_bytes(data[: int(share * len(data)) or 5])
    with pytest.raises(UnreadableError, match=rf"{name}: not a readable \w+ file: "):
        entry(tmp_path, f"files: [{name}]").scan()


@pytest.mark.fault("T13")
@pytest.mark.parametrize(
    ("name", "head", "piece"),
    [
        ("a.csv.gz", b"url\n", b"\0"),
        ("a.csv.gz", b"url\n", b"http://host/the-same\n"),
        ("a.csv.gz", b'url\n"', b"\n"),
        ("a.jsonl.gz", b"", b"["),
        ("a.jsonl.gz", b'{"url": "http://host/x"}\n', b"\n"),
        ("a.json.gz", b"[", b" "),
    ],
    ids=["one line", "many lines", "one quoted cell", "one JSON line", "empty JSON lines", "one JSON list"],
)
def test_T13_a_compressed_list_that_does_not_end_is_bounded(
    tmp_path: Path, base: float, name: str, head: bytes, piece: bytes, record_property: Figure
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(head + piece * ((1 << 27) // len(piece)), compresslevel=6))
    source = entry(tmp_path, f"files: [{name}]")
    refused, peak, seconds = measured(SCAN, source.file)
    small = (tmp_path / name).stat().st_size >> 10
    record_property("figure", f"{small} KiB to 128 MiB of {piece!r} as {name}: refused in {seconds:.1f} s, {peak - base:.0f} MiB")
    (said,) = ast.literal_eval(refused)
    assert re.search(rf"{name}: not a readable \w+ file: it grows to more than 16 MiB and 100 times", said)
    assert peak - base < 300
    assert seconds < 60


@pytest.mark.fault("T13")
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_T13_a_line_that_is_too_long_costs_that_line(tmp_path: Path, base: float, name: str, record_property: Figure) -> None:
    good, head = b"http://host/x", b"url\n"
    if name == "a.jsonl":
        good, head = b'{"url": "http://host/x"}', b""
    with (tmp_path / name).open("wb") as file:
        file.write(head + good + b"\n")
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + good)
    source = entry(tmp_path, f"files: [{name}]")
    assert [row[OUTCOME] for row in rows_of(source)] == [None, "bad_row", None]
    _, peak, _ = measured(SCAN, source.file)
    record_property("figure", f"a line of 100 MiB in {name}: {peak - base:.0f} MiB more held")
    assert peak - base < 160
