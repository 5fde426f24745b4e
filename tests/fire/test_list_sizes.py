"""Lists of nothing, of too much, and things that are no lists (faults T15, T17, T21)."""

import gzip
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.demo import DemoServer
from mmdata.errors import ConfigError
from mmdata.loader import read_sample
from mmdata.report.page import funnel_html
from mmdata.report.table import funnel_text
from mmdata.shards import open_corpus
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.download import Download
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.text_rules import TextRules
from mmdata.stages.verbs import Source
from tests.conftest import encode, write_yaml
from tests.corpus import draw
from tests.fire.lists import IMAGES, entry, measured, run_plan
from tests.fire.seeds import GAUNTLET

Figure = Callable[[str, object], None]
STAGES = (Download(image_size=32), TextRules(), Dedupe(by="text"))
PLAN = """
from mmdata.engine import Runner
from mmdata.plan import load_plan
def main(plan, run_dir):
    return Runner(load_plan(Path(plan)), run_dir).forecast().partitions
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, if there is one: many files, or large ones, need not wear a disk."""
    home = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=home, prefix="mmdata-") as folder:
        yield Path(folder)


def empty_list(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"url": pa.array([], pa.string())}), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(b""))
    else:
        path.write_text({".json": "[]", ".list": "url,text\n"}.get(path.suffix, ""), encoding="utf-8")


@pytest.mark.fault("T15")
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "a.jsonl.gz", "header.list"])
def test_T15_a_list_of_nothing_makes_a_valid_corpus_of_nothing(tmp_path: Path, name: str) -> None:
    empty_list(tmp_path / name)
    source = entry(tmp_path, f"files: [{name}]" + (", format: csv" if name == "header.list" else ""))
    result = run_plan(tmp_path, source, *STAGES, sink=Shards(samples=1))
    assert result.funnel == {"rows_in": 0, "made_by_splits": 0, "kept": 0, "dropped": {}, "split": 0}
    assert result.corpus is not None
    assert len(open_corpus(result.corpus).samples) == 0
    assert "kept" in funnel_text(result)
    assert "kept" in funnel_html(result.funnel, result.by_stage)
    assert not run_plan(tmp_path, source, *STAGES, sink=Shards(samples=1)).fresh


@pytest.mark.fault("T15")
def test_T15_empty_lists_among_others_cost_nothing_and_one_row_is_enough(tmp_path: Path, server: DemoServer) -> None:
    for name in ("a.csv", "b.csv", "d.csv"):
        (tmp_path / name).write_text("" if name == "a.csv" else "url,text\n\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text(f"url,text\n{IMAGES[0]},a lighthouse", encoding="utf-8")
    result = run_plan(tmp_path, entry(tmp_path, 'files: ["*.csv"]'), *STAGES, sink=Shards(), allow=server.allow)
    assert (result.funnel["rows_in"], result.funnel["kept"]) == (1, 1)
    assert result.corpus is not None
    assert read_sample(open_corpus(result.corpus), 0).blocks[1].text == "a lighthouse"


@pytest.mark.fault("T17")
def test_T17_very_many_list_files_are_bounded(memory: Path, record_property: Figure) -> None:
    num = 100_000 if GAUNTLET else 5_000
    for number in range(num):
        folder = memory / f"{number // 1000:03d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:06d}.csv").write_text(f"url,text\nhttp://host/{number}.jpg,a\n", encoding="utf-8")
    (memory / "again").symlink_to(memory)
    code = """
from mmdata.stages.sources import Catalog
def main(*files):
    return sum(len(Catalog(file=file, entry="x").scan()) for file in files)
"""
    _, base, _ = measured(code)
    slices, peak, seconds = measured(code, entry(memory, 'files: ["**/*.csv"]').file)
    record_property("figure", f"{num:,} list files: found and counted in {seconds:.1f} s, {peak - base:.0f} MiB")
    assert int(slices) == num  # the link back to the folder is not followed
    assert peak - base < 150
    assert seconds < num / 200


def in_time(source: Source) -> Exception | None:
    """Scan a source; return its error, or fail if it is still at it: a pipe without a writer blocks for ever."""
    found: list[Exception] = []

    def scan() -> None:
        try:
            source.scan()
        except ConfigError as error:
            found.append(error)

    thread = threading.Thread(target=scan, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return found[0] if found else None


def make_special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        targets = {"loop": path.name, "device": "/dev/zero", "pipe by link": "the-pipe", "nothing": "not-there"}
        path.symlink_to(targets[kind])
        if kind == "pipe by link":
            os.mkfifo(path.with_name("the-pipe"))


@pytest.mark.fault("T17")
@pytest.mark.parametrize("kind", ["pipe", "socket", "loop", "device", "pipe by link", "nothing"])
def test_T17_what_is_no_file_is_refused_and_never_opened(tmp_path: Path, kind: str) -> None:
    lists, images, texts = (tmp_path / name for name in ("l", "i", "t"))
    for home in (lists, images, texts):
        home.mkdir()
    (lists / "a.csv").write_text("url\nhttp://host/x\n", encoding="utf-8")
    for home in (images, texts):
        (home / "a.png").write_bytes(encode(draw("red", "bar")))
    for home, name, source in (
        (lists, "b.csv", entry(lists, 'files: ["*.csv"]')),
        (images, "b.png", Folder(path=str(images))),
        (texts, "a.txt", Folder(path=str(texts))),
    ):
        make_special(home / name, kind)
        error = in_time(source)
        assert error is not None
        assert f"{name}: not a regular file" in str(error)


@pytest.mark.fault("T17")
def test_T17_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(draw("red", "bar")))
    (tmp_path / "a.csv").write_text("url\nhttp://host/x\n", encoding="utf-8")
    (tmp_path / "again").symlink_to(".")
    assert [part.stop for part in Folder(path=str(tmp_path)).scan()] == [1]
    assert [part.file for part in entry(tmp_path, 'files: ["**/*.csv"]').scan()] == ["a.csv"]


@pytest.mark.fault("T17")
def test_T17_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.csv")).write_text("url\n", encoding="utf-8")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(encode(draw("red", "bar")))
    for source in (entry(tmp_path, 'files: ["*.csv"]'), Folder(path=str(tmp_path))):
        with pytest.raises(ConfigError, match=r"its name is not UTF-8"):
            source.scan()


def write_many(path: Path, num: int) -> None:
    """Write a list of many rows, and a parquet of them in a single row group."""
    line = {".csv": "http://host-{0}.example/{1:x}.jpg,a caption about {0}\n"}
    line[".jsonl"] = '{{"url": "http://host-{0}.example/{1:x}.jpg", "text": "a caption about {0}"}}\n'
    if path.suffix != ".parquet":
        with path.open("w", encoding="utf-8") as file:
            file.write("url,text\n" if path.suffix == ".csv" else "")
            for start in range(0, num, 100_000):
                numbers = range(start, start + 100_000)
                file.write("".join(line[path.suffix].format(k, k * 2654435761 % 2**32) for k in numbers))
        return
    numbers = pa.array(np.arange(num))
    text = pa.compute.binary_join_element_wise("a caption about", numbers.cast(pa.string()), " ")
    url = pa.compute.binary_join_element_wise("http://host.example/", numbers.cast(pa.string()), "")
    pq.write_table(pa.table({"url": url, "text": text}), path, row_group_size=num)


def plan_of(folder: Path, name: str) -> Path:
    """Write a plan over a list."""
    file = entry(folder, f"files: [{name}]").file
    return write_yaml(folder, f"name: long\nsource: {{catalog: {{file: {file}, entry: x}}}}\nstages: [text_rules]\n")


@pytest.fixture(scope="module")
def of_one_row(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What planning a list of one row holds at its peak, in MiB."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "a.csv").write_text("url,text\nhttp://host/a.jpg,a caption\n", encoding="utf-8")
    return measured(PLAN, plan_of(folder, "a.csv"), folder / "run")[1]


@pytest.mark.fault("T21")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_T21_a_long_list_is_planned_in_little_memory(
    memory: Path, of_one_row: float, suffix: str, record_property: Figure
) -> None:
    num = 10_000_000 if GAUNTLET else 200_000
    write_many(memory / f"a{suffix}", num)
    partitions, peak, seconds = measured(PLAN, plan_of(memory, f"a{suffix}"), memory / "run")
    size = (memory / f"a{suffix}").stat().st_size >> 20
    record_property("figure", f"{num:,} rows, {size} MiB of {suffix}: planned in {seconds:.1f} s, {peak:.0f} MiB in all")
    assert int(partitions) == num // 10_000
    assert peak < 500
    assert peak - of_one_row < 70  # 350 bytes a row of the short form, which no object of Python's would do with
