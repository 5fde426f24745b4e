"""Texts from people who wish us ill: in captions, on terminals, in pages, in tables (faults T01, T02, T04, T05, T07, T08)."""

import ast
import io
import json
import re
import sys
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmdata
from mmdata.cli.main import main
from mmdata.demo import DemoServer
from mmdata.engine import RunStore
from mmdata.report.explain import explain
from mmdata.report.fates import fates
from mmdata.report.page import Card, Section, cards_html, curves_html, funnel_html, table_html, write_page
from mmdata.report.sheet import contact_sheet
from mmdata.stages.download import Download
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from tests.conftest import encode, write_yaml
from tests.fire.lists import IMAGES, entry, rows_of, run_plan, shard_samples, write_lines
from tests.toyrun import Run, Terminal

HUGE = "é" * 5_000_000
FORMATS = ["csv", "tsv", "jsonl", "parquet"]
ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202eright\u2066\r\b\x7f"
SCRIPT = """</td></title><script>alert(1)</script><img src=x onerror='alert(2)'>' onmouseover="alert(3)" <svg/onload=alert(4)>"""


def repairs(home: Path) -> Counter[str]:
    """Count the rows of a finished run by what was mended in them."""
    table = fates(RunStore(str(home / "run")), ["_repaired"])
    return Counter(word for words in table.column("_repaired").to_pylist() for word in (words or "").split(",") if word)


@pytest.mark.fault("T01", "T02", "T04")
def test_T01_T02_T04_texts_are_mended_kept_and_counted(tmp_path: Path, server: DemoServer) -> None:
    texts = [
        "N\0UL\0",
        "lone \ud800 half",
        HUGE,
        HUGE + "\0\udfff",
        "nothing to mend �",
        "fine",
        "NUL in the url",
        "no url",
        "carried",
    ]
    lines: list[dict[str, Any]] = [{"url": url, "text": text} for url, text in zip(IMAGES, texts, strict=False)]
    lines[5] |= {"also": ["also\0", "\udc00"]}
    lines[6]["url"] += "\0"
    lines[7]["url"] += "\ud800"
    lines[8]["note"] = "a \ud800 note"
    write_lines(tmp_path / "a.jsonl", lines)
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"url": "' + IMAGES[9].encode() + b'", "text": "not \xff\xfe UTF-8 \xe2\x82"}\n')
    source = entry(tmp_path, "files: [a.jsonl], carry: {note: string}, columns: {captions: [also]}")
    result = run_plan(tmp_path, source, Download(image_size=32), sink=Shards(), allow=server.allow)
    assert (result.funnel["kept"], result.funnel["dropped"]) == (8, {"bad_row": 2})
    assert repairs(tmp_path) == {"nul": 3, "utf8": 5, "cut": 2}
    samples = shard_samples(result)
    cut = "é" * 32_768
    mended = ["NUL", "lone � half", cut, cut, "nothing to mend �", "fine", "carried", "not �� UTF-8 ��"]
    assert sorted(sample["txt"].decode() for sample in samples) == sorted(mended)
    facts = [json.loads(sample["json"].decode()) for sample in samples]
    assert {"a � note"} == {fact["note"] for fact in facts} - {None}
    assert all("_repaired" not in fact for fact in facts)
    (row,) = [row for row in rows_of(source) if row["text"] == "fine"]
    assert [caption["text"] for caption in row["captions"]] == ["also", "�"]
    assert "_repaired          nul,utf8" in explain(str(tmp_path / "run"), row["sample_id"])


def write_as(path: Path, url: str, text: bytes) -> None:
    """Write a list of one row with these bytes as its text."""
    if path.suffix == ".parquet":
        array = pa.array([text]).cast(pa.binary())
        string = pa.StringArray.from_buffers(1, array.buffers()[1], array.buffers()[2])
        pq.write_table(pa.table({"url": [url], "text": string, "texts": pa.ListArray.from_arrays([0, 1], string)}), path)
    elif path.suffix == ".jsonl":
        escaped = text.replace(b"\0", b"\\u0000")
        path.write_bytes(b'{"url": "%s", "text": "%s", "texts": ["%s"]}\n' % (url.encode(), escaped, escaped))
    else:
        sep = b"\t" if path.suffix == ".tsv" else b","
        path.write_bytes(sep.join((b"url", b"text", b"texts")) + b"\n" + sep.join((url.encode(), text, text)) + b"\n")


def read_one(folder: Path, suffix: str, text: bytes) -> tuple[str, str | None]:
    """Write a list of one row, read it; return its text, which is its further caption too, and what was mended."""
    write_as(folder / f"a.{suffix}", "http://host/x", text)
    (row,) = rows_of(entry(folder, f"files: [a.{suffix}], columns: {{captions: [texts]}}"))
    assert row["captions"] == [{"text": row["text"], "kind": "texts"}]
    return row["text"], row["_repaired"]


@pytest.mark.fault("T01")
@pytest.mark.parametrize("suffix", FORMATS)
def test_T01_nul_is_removed_in_every_format(tmp_path: Path, suffix: str) -> None:
    assert read_one(tmp_path, suffix, b"N\0UL\0") == ("NUL", "nul")


@pytest.mark.fault("T02")
@pytest.mark.parametrize("suffix", FORMATS)
def test_T02_what_is_no_utf8_is_replaced_in_every_format(tmp_path: Path, suffix: str) -> None:
    assert read_one(tmp_path, suffix, b"not \xff UTF-8") == ("not � UTF-8", "utf8")
    assert read_one(tmp_path, suffix, b"UTF-8 \xc3\xa9 \xef\xbf\xbd") == ("UTF-8 é �", None)


@pytest.mark.fault("T04")
@pytest.mark.parametrize("suffix", FORMATS)
def test_T04_ten_megabytes_are_cut_in_every_format(tmp_path: Path, suffix: str) -> None:
    assert read_one(tmp_path, suffix, b"x" * 10_000_000) == ("x" * 65_536, "cut")
    assert read_one(tmp_path, suffix, "x€".encode() * 20_000) == ("x€" * 16_384, "cut")
    assert read_one(tmp_path, suffix, "€".encode() * 30_000) == ("€" * 21_845, "cut")  # 65,535 bytes: no half of a character


@pytest.mark.fault("T01", "T02", "T04")
def test_T01_T02_T04_a_folder_is_mended_alike(tmp_path: Path, gradient: np.ndarray) -> None:
    for number, text in enumerate((b"N\0UL", b"not \xff UTF-8", HUGE.encode(), b"as it is")):
        (tmp_path / f"{number}.png").write_bytes(encode(gradient))
        (tmp_path / f"{number}.txt").write_bytes(text)
    rows = rows_of(Folder(path=str(tmp_path)))
    assert [row["text"] for row in rows] == ["NUL", "not � UTF-8", "é" * 32_768, "as it is"]
    assert [row["_repaired"] for row in rows] == ["nul", "utf8", "cut", None]


def raw_controls(text: str) -> set[str]:
    """Return what would do something to a terminal but begin a line."""
    return {char for char in text if not char.isprintable()} - {"\n", "\t"}


def call(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command line; return all that it wrote."""
    monkeypatch.setattr(sys, "argv", ["mmdata", *args])
    with suppress(SystemExit):
        main()
    return "".join(capsys.readouterr())


@pytest.mark.fault("T05")
def test_T05_control_characters_reach_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"url": f"http://h/{ESCAPES}", "text": ESCAPES, ESCAPES: ESCAPES},
        {"url": "http://h/x", "text": ESCAPES, ESCAPES: "b"},
    ]
    name = f"a {ESCAPES.replace('/', '')}.jsonl"
    write_lines(tmp_path / name, lines)
    text = json.dumps({"entries": {ESCAPES: {"files": ["a*"], "format": "jsonl", "carry": {ESCAPES: "string"}}}})
    write_yaml(tmp_path, text, "catalog.yaml")
    plan = {"name": "x", "source": [{"catalog": {"file": "catalog.yaml", "entry": ESCAPES}}], "stages": ["text_rules"]}
    write_yaml(tmp_path, json.dumps(plan), "plan.yaml")
    write_yaml(tmp_path, json.dumps({**plan, "stages": [{ESCAPES: {}}]}), "stage.yaml")
    write_yaml(tmp_path, json.dumps({**plan, ESCAPES: 1}), "key.yaml")
    write_yaml(
        tmp_path, json.dumps({**plan, "source": [{"catalog": {"file": "catalog.yaml", "entry": ESCAPES + "x"}}]}), "entry.yaml"
    )
    shown = ""
    for args in (
        ["plan", "plan.yaml"], ["run", "plan.yaml", "--run-dir", "r", "--executor", "inline"], ["status", "r"],
        ["explain", "r", ""], ["status", "r", "--json"], ["run", "plan.yaml", "--run-dir", "r"],
        ["run", "stage.yaml", "--run-dir", "s"],
        ["run", "key.yaml", "--run-dir", "s"], ["run", "entry.yaml", "--run-dir", "s"], ["explain", "r", ESCAPES],
    ):  # fmt: skip
        text = call(args, capsys, monkeypatch)
        assert raw_controls(text) == set(), args
        assert len(text) > 20, args
        shown += text
    (tmp_path / name).write_text("{broken", encoding="utf-8")
    text = call(["run", "plan.yaml", "--run-dir", "r"], capsys, monkeypatch)
    assert "none of its 1 rows can be read as jsonl" in text
    assert raw_controls(text) == set()
    assert "�[2J" in shown  # there was something to keep away


@pytest.mark.fault("T05")
@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_T05_nor_do_progress_lines_bring_them(tmp_path: Path, stream: io.StringIO) -> None:
    run = Run(tmp_path, stream=stream)
    run.progress.launched(run.segment(0))
    run.progress.failed(run.segment(0), f"{ESCAPES}: cannot be read", again=False)
    run.facts()
    run.progress.end("stopped", ESCAPES)
    text = stream.getvalue().replace("\r\033[K", "")  # the live line takes itself back
    assert "cannot be read" in text
    assert raw_controls(text) == set()


class Tags(HTMLParser):
    """The elements of a page, and what in it would run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.alive: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        outside = [value for name, value in attrs if name in ("src", "href") and not (value or "").startswith("data:image/")]
        self.alive += [tag] * (tag in ("script", "iframe", "object", "embed", "link", "base", "form"))
        self.alive += [name for name, _ in attrs if name.startswith("on")] + [str(value) for value in outside]


@pytest.mark.fault("T07")
def test_T07_a_page_runs_nothing_of_what_it_shows(tmp_path: Path, gradient: np.ndarray) -> None:
    def page(text: str, name: str) -> str:
        funnel: dict[str, object] = {"rows_in": 2, "made_by_splits": 0, "kept": 1}
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/text": 1.0}\n', encoding="utf-8")
        sections = [
            Section(text, funnel_html(funnel, [(text, text, 1)])), Section(text, cards_html([Card(gradient, text)])),
            Section(text, table_html((text, "b"), [(text, 1), (text, None)])),
            Section(text, curves_html(tmp_path / "metrics.jsonl")),
        ]  # fmt: skip
        write_page(tmp_path / name, text, sections)
        return (tmp_path / name).read_text(encoding="utf-8")

    plain, hostile = Tags(page("a caption", "plain.html")), Tags(page(SCRIPT, "hostile.html"))
    assert hostile.alive == []
    assert hostile.found == plain.found
    contact_sheet(tmp_path / "sheet.png", SCRIPT, [(SCRIPT, [([gradient], SCRIPT)])], ("a",), (SCRIPT,))
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.fault("T07")
def test_T07_nothing_else_writes_pages() -> None:
    home = Path(mmdata.__file__).parent
    pages = re.compile(r"<(html|body|table|div|img)\b")
    writers = {path.relative_to(home).as_posix() for path in home.rglob("*.py") if pages.search(path.read_text(encoding="utf-8"))}
    assert writers == {"report/page.py"}, "every text of a page goes through `escape` in report/page.py"


@pytest.mark.fault("T08")
def test_T08_nothing_writes_csv() -> None:
    """A spreadsheet runs a cell that starts with `=`, `+`, `-` or `@`; whoever writes the first CSV has to quote such cells."""
    banned = {"writer", "DictWriter", "write_csv", "to_csv", "sink_csv", "CSVWriter"}
    home = Path(mmdata.__file__).parent
    found = [
        f"{path.relative_to(home)}:{node.lineno}: {node.attr if isinstance(node, ast.Attribute) else node.name}"
        for path in home.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in banned) or (isinstance(node, ast.alias) and node.name in banned)
    ]
    assert found == [], "a CSV must quote formulas: prefix cells that start with = + - @ TAB CR with an apostrophe, and test it"
