"""The export of a run: additions and retries in one flat folder, one row an input row."""

import json
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.cli.main import main
from mmdata.config import parse_yaml
from mmdata.engine import Runner, RunStore
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor
from mmdata.plan import parse_plan
from mmdata.report.export import export_img2dataset
from mmdata.schema import OUTCOME, PAYLOAD_COLUMN, ROW
from mmdata.shards.img2dataset import Item, Shard
from mmdata.storage import digest_bytes
from tests.fit.conftest import write_list
from tests.fit.web import PAGES, Web, picture

PLAN = """\
name: own
source: {{catalog: {{file: catalog.yaml, entry: pairs, partition_rows: 3}}}}
stages:
  - keep: {{column: score, at_least: {least}}}
  - download: {{image_size: 32, limits: {{host_interval_s: 0, retries: 0}}}}
"""


def write(folder: Path, site: Web) -> None:
    paths = ("/good/0.jpg", "/missing", "/good/1.jpg", "/good/2.jpg", "/html")
    rows: list[dict[str, object]] = [
        {"url": site.url(path), "text": f"text {number}", "score": number / 10} for number, path in enumerate(paths)
    ]
    write_list(folder, [*rows, {"url": 5, "text": "no url", "score": 1.0}])
    (folder / "catalog.yaml").write_text("entries: {pairs: {files: [list.jsonl], carry: {score: float32}}}", encoding="utf-8")


def run(folder: Path, site: Web, least: float) -> None:
    plan = parse_plan(parse_yaml(PLAN.format(least=least), "plan.yaml"), folder)
    Runner(plan, str(folder / "run"), (site.allow,)).execute(InlineExecutor(), quiet=True)


def exported(folder: Path) -> list[dict[str, object]]:
    tables = [pq.read_table(path) for path in sorted((folder / "out").glob("*.parquet"))]
    found: list[dict[str, object]] = pa.concat_tables(tables).to_pylist()
    return found


def messages(folder: Path) -> list[object]:
    return [row["error_message"] for row in exported(folder)]


def images(folder: Path, shard: str) -> list[str]:
    with tarfile.open(folder / "out" / shard) as tar:
        return [name for name in tar.getnames() if name.endswith(".jpg")]


def test_additions_are_merged_and_every_input_row_has_one_row(tmp_path: Path, site: Web) -> None:
    write(tmp_path, site)
    run(tmp_path, site, least=0.15)
    first = export_img2dataset(str(tmp_path / "run"), str(tmp_path / "out"))
    assert (first.written, first.kept, first.rows, first.successes) == (2, 0, 6, 2)
    gone = "not_asked"
    assert messages(tmp_path) == [gone, gone, None, None, "Image decoding error", "unknown url type"]
    run(tmp_path, site, least=0.0)
    assert [path.name for path in sorted((tmp_path / "run/payload").glob("*/*"))] == ["download", "download.1"]
    second = export_img2dataset(str(tmp_path / "run"), str(tmp_path / "out"))
    assert (second.written, second.kept, second.rows, second.successes) == (1, 1, 6, 3)  # one shard is as it was
    assert messages(tmp_path) == [None, "HTTP Error 404: Not Found", None, None, "Image decoding error", "unknown url type"]
    assert images(tmp_path, "00000.tar") == ["000000000.jpg", "000000002.jpg"]
    row = exported(tmp_path)[0]
    assert list(row)[:5] == ["score", "sample_id", "caption", "url", "key"]
    assert (row["caption"], row["width"], row["original_width"], row["exif"]) == ("text 0", 32, 300, "{}")
    assert row["sha256"] == digest_bytes(PAGES["/good/0.jpg"][2])
    stats = [json.loads((tmp_path / f"out/0000{number}_stats.json").read_text(encoding="utf-8")) for number in range(2)]
    assert [each["count"] for each in stats] == [3, 3]


def test_a_row_that_a_retry_recovered_is_good_and_a_later_failure_takes_nothing_away(tmp_path: Path, site: Web) -> None:
    write(tmp_path, site)
    run(tmp_path, site, least=0.0)
    store = RunStore(str(tmp_path / "run"))
    (folder,) = (tmp_path / "run/payload").glob("*")
    ident = store.read_json("generations/1.json")["partitions"][0]["ident"]
    (before,) = store.held(folder.name, ident)
    shard = Shard(tmp_path, 0, 10_000, (pa.field("url", pa.string()),))
    data = picture(77)
    shard.write([(1, Item({"url": site.url("/missing")}, "success", None, data, sizes=(300, 200, 300, 200), sha256="ab"))])
    place = shard.commit(store.store, f"payload/{folder.name}/download.r1")
    member = shard.members[1]
    ref = {
        "set": place,
        "tar": "00000.tar",
        "offset": member.offset,
        "size": member.size,
        "sha256": digest_bytes(data),
        "trusted": True,
    }
    rows = before.to_pylist()
    recovered = {**rows[1], PAYLOAD_COLUMN: ref, "raw_sha256": "ab", OUTCOME: None}
    failed = {**rows[0], PAYLOAD_COLUMN: None, OUTCOME: "dns"}
    store.add_columns(folder.name, ident, 1, pa.Table.from_pylist([failed, recovered], schema=before.schema))
    assert export_img2dataset(str(tmp_path / "run"), str(tmp_path / "out")).successes == 4
    assert [row["status"] for row in exported(tmp_path)[:3]] == ["success"] * 3
    assert exported(tmp_path)[1]["width"] == 300
    assert [row[ROW] for row in rows] == [0, 1, 2]


def test_a_partition_that_was_given_up_is_left_out(tmp_path: Path, site: Web) -> None:
    write(tmp_path, site)
    text = (
        PLAN.format(least=0.0)
        .replace("partition_rows: 3", "partition_rows: 6")
        .replace(
            "download: {image_size: 32, limits: {host_interval_s: 0, retries: 0}}",
            "download_img2dataset: {image_size: 32, resources: {call_s: 2.1, row_s: 0.1}}",  # too little time for anything
        )
    )
    plan = parse_plan(parse_yaml(text + "budget: {failed_partitions: 1}\n", "plan.yaml"), tmp_path)
    result = Runner(plan, str(tmp_path / "run"), (site.allow,)).execute(InlineExecutor(), quiet=True)
    assert list(result.failed) == [0]
    exported = export_img2dataset(str(tmp_path / "run"), str(tmp_path / "out"))
    assert (exported.written, exported.rows) == (0, 0)


def test_an_export_says_why_it_cannot_be_made(tmp_path: Path, site: Web) -> None:
    with pytest.raises(ConfigError, match="no finished generation"):
        export_img2dataset(str(tmp_path / "empty"), str(tmp_path / "out"))
    write(tmp_path, site)
    run(tmp_path, site, least=0.0)
    with pytest.raises(ConfigError, match="is a run folder"):
        export_img2dataset(str(tmp_path / "run"), str(tmp_path / "run"))


def test_the_command_exports_and_names_mistakes(
    tmp_path: Path, site: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmdata", *words])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    write(tmp_path, site)
    run(tmp_path, site, least=0.0)
    code, out, _ = call("export", "img2dataset", str(tmp_path / "run"), str(tmp_path / "out"), "--output-format", "files")
    assert (code, out.strip()) == (0, "3 of 6 rows downloaded; 2 shards written")
    assert (tmp_path / "out/00000/000000000.jpg").exists()
    code, _, err = call("export", "tfds", "run", "out")
    assert code == 2
    assert "no export is called `tfds`" in err
    code, _, err = call("export", "img2dataset", "run", "out", "--output-format", "tar")
    assert code == 2
    assert "no output format is called `tar`" in err


def test_the_command_line_downloads_and_tells_the_truth(
    tmp_path: Path, site: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "urls.txt").write_text(site.url("/good/1.jpg") + "\n" + site.url("/missing") + "\n", encoding="utf-8")
    command = ["mmdata", "img2dataset", "--allow", site.allow, "--url_list", str(tmp_path / "urls.txt"), "--enable_wandb"]
    monkeypatch.setattr(sys, "argv", [*command, f"--output_folder={tmp_path / 'out'}", "--image_size", "32"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code in (0, None), err
    assert out.strip().endswith("1 of 2 rows downloaded; 1 shards written")
    assert "--enable_wandb: nothing is sent to Weights & Biases" in err
    monkeypatch.setattr(sys, "argv", [*command, "--imagesize", "32"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "has no key `imagesize`" in capsys.readouterr().err
