"""The download stage done by img2dataset: the same columns, outcomes and layout as our own."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.config import parse_yaml
from mmdata.engine import Runner
from mmdata.errors import ConfigError, PartitionError
from mmdata.executors import InlineExecutor
from mmdata.plan import parse_plan
from mmdata.report.export import export_img2dataset
from mmdata.schema import ROW
from mmdata.shards import open_corpus
from mmdata.shards.payloads import fetch_payload
from mmdata.shards.words import words_table
from mmdata.stages.download import Download
from mmdata.stages.download_img2dataset import DownloadImg2dataset, promises_table
from mmdata.stages.verbs import Batch, Place, Resources, WorkerContext
from mmdata.storage import open_store
from tests.fit.conftest import write_list
from tests.fit.web import Web

DOCS = Path(__file__).parent.parent.parent / "docs/img2dataset.md"
PATHS = ("/good/1.jpg", "/missing", "/html", "/noai", "/png", "/good/2.jpg")


def batch(urls: list[str | None]) -> Batch:
    num = len(urls)
    table = pa.table({
        ROW: pa.array(range(num), pa.int64()), "url": pa.array(urls, pa.string()), "sample_id": [f"{n:032x}" for n in range(num)],
        "text": pa.array([f"text {n}" for n in range(num)]), "media": [None if url is None else "image" for url in urls],
    })  # fmt: skip
    return Batch(table, place=Place("payload/k/download", 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, site: Web) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """The same rows by both engines: run folder and result."""
    urls = [*(site.url(path) for path in PATHS), None, "file:///etc/passwd"]
    found = {}
    for stage in (
        Download.model_validate({"image_size": 64, "robots": False, "limits": {"host_interval_s": 0, "retries": 0}}),
        DownloadImg2dataset(image_size=64, connections=2, timeout_s=5, resources=Resources(call_s=300)),
    ):
        folder = tmp_path_factory.mktemp(stage.name)
        table = stage.open(WorkerContext(open_store(str(folder)), (site.allow,)))(batch(urls))
        found[stage.name] = (folder, table.to_pylist())
    return found


def test_both_engines_name_the_same_outcomes(made: dict[str, tuple[Path, list[dict[str, Any]]]]) -> None:
    ours, theirs = (made[name][1] for name in ("download", "download_img2dataset"))
    assert list(ours[0]) == list(theirs[0])
    assert [row["_outcome"] for row in ours] == [
        None, "http_4xx", "not_media", "opted_out", None, None, None, "blocked_scheme",
    ]  # fmt: skip
    assert [row["_outcome"] for row in theirs] == [
        None, "http_4xx", "decode_error", "opted_out", None, None, None, "blocked_scheme",
    ]  # fmt: skip
    for name in ("raw_sha256", "original_width", "original_height"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]


def test_its_payload_is_in_our_layout_and_not_trusted(made: dict[str, tuple[Path, list[dict[str, Any]]]]) -> None:
    folder, rows = made["download_img2dataset"]
    refs = [row["payload"] for row in rows if row["payload"] is not None]
    assert [(ref["trusted"], ref["tar"]) for ref in refs] == [(False, "00003.tar")] * 3
    for ref in refs:
        assert fetch_payload(open_store(str(folder)), ref).startswith(b"\xff\xd8\xff")
    names = sorted(path.name for path in (folder / "payload/k/download").iterdir())
    assert names == ["00003.parquet", "00003.tar", "00003_stats.json"]
    tables = [pq.read_table(made[name][0] / "payload/k/download/00003.parquet") for name in ("download", "download_img2dataset")]
    assert tables[0].schema.equals(tables[1].schema)
    assert [row["error_message"] for row in tables[0].to_pylist()] == [row["error_message"] for row in tables[1].to_pylist()]
    stats = json.loads((folder / "payload/k/download/00003_stats.json").read_text(encoding="utf-8"))
    assert (stats["count"], stats["successes"]) == (7, 3)


def test_a_plan_runs_with_it_as_with_our_own(tmp_path: Path, site: Web) -> None:
    write_list(tmp_path, [{"url": site.url(path), "text": "a text"} for path in PATHS])
    (tmp_path / "catalog.yaml").write_text("entries: {pairs: {files: [list.jsonl]}}", encoding="utf-8")
    text = """\
name: own
source: {catalog: {file: catalog.yaml, entry: pairs}}
stages:
  - download: {engine: img2dataset, image_size: 32, resources: {call_s: 300}}
  - measure
sink: {shards: {samples: 10}}
"""
    plan = parse_plan(parse_yaml(text, "plan.yaml"), tmp_path)
    result = Runner(plan, str(tmp_path / "run"), (site.allow,)).execute(InlineExecutor(), quiet=True)
    assert (result.funnel["rows_in"], result.funnel["kept"]) == (6, 3)
    assert result.funnel["dropped"] == {"decode_error": 1, "http_4xx": 1, "opted_out": 1}
    assert len(open_corpus(str(tmp_path / "run/corpus")).samples) == 3
    exported = export_img2dataset(str(tmp_path / "run"), str(tmp_path / "out"))
    assert (exported.rows, exported.successes) == (6, 3)


def test_an_engine_that_is_not_there_is_refused_by_its_line(tmp_path: Path) -> None:
    for stage, message in {
        "download: {engine: wget, image_size: 32}": r"plan.yaml:4: `download` has no engine `wget`[\s\S]*mmdata",
        "download: {engine: img2dataset, image_size: 32, passes: 2}": r"plan.yaml:4: .*`passes`",
        "measure: {engine: img2dataset}": r"plan.yaml:4: .*`engine`",
    }.items():
        text = f"name: own\nsource: {{folder: {{path: x}}}}\nstages:\n  - {stage}\n"
        with pytest.raises(ConfigError, match=message):
            parse_plan(parse_yaml(text, "plan.yaml"), tmp_path)


def test_our_own_engine_may_be_named(tmp_path: Path) -> None:
    write_list(tmp_path, [{"url": "http://a.example/1.jpg", "text": "a text"}])
    (tmp_path / "catalog.yaml").write_text("entries: {pairs: {files: [list.jsonl]}}", encoding="utf-8")
    source = "{catalog: {file: catalog.yaml, entry: pairs}}"
    text = f"name: own\nsource: {source}\nstages:\n  - download: {{engine: mmdata, image_size: 32}}\n"
    (stage,) = parse_plan(parse_yaml(text, "plan.yaml"), tmp_path).stages
    assert stage == Download(image_size=32)


def test_a_child_that_does_not_end_is_ended(tmp_path: Path, site: Web) -> None:
    stage = DownloadImg2dataset(image_size=64, resources=Resources(call_s=2.5, row_s=0.1))
    with pytest.raises(PartitionError, match=r"img2dataset was not done with 1 urls within 0.5 s"):
        stage.open(WorkerContext(open_store(str(tmp_path))))(batch([site.url("/good/1.jpg")]))


def test_a_child_that_fails_says_why(tmp_path: Path, site: Web) -> None:
    stage = DownloadImg2dataset(image_size=64, resources=Resources(call_s=300)).model_copy(update={"encode_format": "bmp"})
    with pytest.raises(PartitionError, match="img2dataset ended with 1: ValueError: Invalid encode format bmp"):
        stage.open(WorkerContext(open_store(str(tmp_path))))(batch([site.url("/good/1.jpg")]))


def test_the_tables_of_the_page_are_current() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert promises_table() in text
    assert words_table() in text
