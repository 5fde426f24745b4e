"""`mmdata img2dataset`: its flags, its formats, its ways to go on; and the export of a run."""

import gzip
import hashlib
import json
import tarfile
import time
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.cli.img2dataset import parse
from mmdata.config import Document, build, parse_yaml
from mmdata.engine import Task, TaskReport
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor
from mmdata.plan import parse_plan
from mmdata.plan.img2dataset import Flags, check, plan_of
from mmdata.report.export import Exported
from mmdata.report.like_img2dataset import Job
from mmdata.stages.download import Download
from tests.fit.conftest import img2dataset, write_list
from tests.fit.web import PAGES, Web


def run(site: Web, **options: object) -> Exported:
    flags = build(Flags, Document("flags", {"image_size": 32, **options}))
    result, exported = Job(flags, (site.allow,)).run(InlineExecutor())
    assert not result.failed
    return exported


def write_urls(folder: Path, site: Web, paths: list[str]) -> str:
    path = folder / "urls.txt"
    path.write_text("".join(site.url(path) + "\n" for path in paths), encoding="utf-8")
    return str(path)


def flags(**options: object) -> Flags:
    return build(Flags, Document("flags", {"url_list": "urls.txt", **options}))


def test_flags_are_read_as_img2dataset_reads_them() -> None:
    found = parse([
        "urls.txt", "--image_size=64", "--resize-mode", "no", "--save_additional_columns", '["a","b"]',
        "--verify_hash=[sha256,sha256]", "--skip_reencode", "--extract_exif=False", "--compute_hash", "None",
        "--max_image_area", "inf", "--nodisable_all_reencoding",
    ])  # fmt: skip
    assert found == {
        "url_list": "urls.txt", "image_size": 64, "resize_mode": "no", "save_additional_columns": ["a", "b"],
        "verify_hash": ["sha256", "sha256"], "skip_reencode": True, "extract_exif": False, "compute_hash": None,
        "max_image_area": float("inf"), "disable_all_reencoding": False,
    }  # fmt: skip


def test_flags_and_defaults_are_img2datasets() -> None:
    import inspect

    main = pytest.importorskip("img2dataset.main")
    theirs = inspect.signature(main.download).parameters
    assert list(theirs) == list(Flags.model_fields)
    none = {"max_image_area": float("inf"), "max_aspect_ratio": float("inf")}
    for name, field in Flags.model_fields.items():
        if name != "url_list":
            assert theirs[name].default == none.get(name, field.default), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_format": "tfrecord"}, "--output_format tfrecord: TFRecord files are not written"),
        ({"output_format": "dummy"}, "--output_format dummy: a download that stores nothing"),
        ({"compute_hash": "md5"}, "--compute_hash md5: the run records SHA-256"),
        ({"distributor": "pyspark"}, "--distributor pyspark: there is no Spark executor"),
        ({"verify_hash": ["md5", "md5"]}, "--verify_hash md5: not the hash of --compute_hash"),
        ({"disallowed_header_directives": ["nobots"]}, "`nobots` is not looked for[\\s\\S]*known: noai,"),
        ({"url_list": "s3://bucket/list.txt"}, "lists are read from a local disk"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_reason(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(flags(**options))


def test_mistaken_flags_are_named() -> None:
    with pytest.raises(ConfigError, match="has no key `imagesize`"):
        flags(imagesize=3)
    with pytest.raises(ConfigError, match=r"`upscale_interpolation`: .* not 'mean'"):
        plan_of(flags(upscale_interpolation="mean"))
    with pytest.raises(ConfigError, match="`width` is a column that the layout itself has"):
        flags(save_additional_columns=["width"])


def test_flags_that_mean_nothing_here_are_told_of() -> None:
    told = check(flags(enable_wandb=True, subjob_size=5))
    assert [line.split(":")[0] for line in told[:2]] == ["--enable_wandb", "--subjob_size"]
    assert told[2].startswith("robots.txt and every opt-out are obeyed")


def test_a_directive_left_out_is_switched_off_and_told(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://example.org/a.jpg\n", encoding="utf-8")
    asked = flags(url_list=str(tmp_path / "urls.txt"), disallowed_header_directives=["noai", "noimageai"])
    assert check(asked)[0] == "--disallowed_header_directives: `noindex` is not obeyed; the manifest says so"
    assert plan_of(asked).cautions == [f"download: the opt-out `{name}` is not obeyed" for name in ("noindex", "noimageindex")]
    usual = flags(
        url_list=str(tmp_path / "urls.txt"), disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"]
    )
    assert plan_of(usual).cautions == []


def test_the_flags_become_a_plan(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://example.org/a.jpg\n", encoding="utf-8")
    plan = plan_of(
        flags(url_list=str(tmp_path / "urls.txt"), timeout=7, retries=1, thread_count=9, upscale_interpolation="bicubic")
    )
    stage = plan.stages[0].model_dump()
    assert (stage["limits"]["connect_s"], stage["limits"]["retries"], stage["connections"]) == (7, 1, 9)
    assert (stage["upscale_interpolation"], stage["resize_mode"]) == ("cubic", "border")


def test_files_and_parquet_are_written_as_img2dataset_writes_them(tmp_path: Path, site: Web) -> None:
    rows: list[dict[str, object]] = [{"url": site.url("/good/1.jpg"), "text": "one"}, {"url": site.url("/missing"), "text": None}]
    options = {"url_list": str(write_list(tmp_path, rows)), "input_format": "jsonl", "caption_col": "text"}
    run(site, **options, output_folder=str(tmp_path / "files"))
    names = sorted(path.relative_to(tmp_path / "files").as_posix() for path in (tmp_path / "files").glob("0*/*"))
    assert names == ["00000/000000000.jpg", "00000/000000000.json", "00000/000000000.txt"]
    assert json.loads((tmp_path / "files/00000/000000000.json").read_text(encoding="utf-8"))["status"] == "success"
    run(site, **options, output_folder=str(tmp_path / "parquet"), output_format="parquet")
    table = pq.read_table(tmp_path / "parquet/00000.parquet")
    assert table.schema.names[-1] == "jpg"
    assert [data is not None for data in table.column("jpg").to_pylist()] == [True, False]
    assert table.column("jpg")[0].as_py() == (tmp_path / "files/00000/000000000.jpg").read_bytes()
    assert not list((tmp_path / "parquet").glob("*.tar"))


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "csv", "tsv.gz", "json", "jsonl", "jsonl.gz", "parquet"])
def test_every_input_format_is_read(tmp_path: Path, site: Web, suffix: str) -> None:
    urls = [site.url("/good/1.jpg"), site.url("/good/2.jpg")]
    lists = tmp_path / "lists"
    lists.mkdir()
    if suffix == "parquet":
        pq.write_table(pa.table({"url": urls, "n": [1, 2]}), lists / "a.parquet")
    else:
        form = suffix.removesuffix(".gz")
        between = "," if form == "csv" else "\t"
        text = {
            "txt": "".join(f"{url}\n" for url in urls),
            "json": json.dumps([{"url": url, "n": n} for n, url in enumerate(urls, 1)]),
            "jsonl": "".join(json.dumps({"url": url, "n": n}) + "\n" for n, url in enumerate(urls, 1)),
        }.get(form, f"url{between}n\n" + "".join(f"{url}{between}{n}\n" for n, url in enumerate(urls, 1)))
        data = text.encode()
        (lists / f"a.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    more = {} if suffix.startswith("txt") else {"save_additional_columns": ["n"]}
    done = run(
        site, url_list=str(lists), input_format=suffix, output_folder=str(tmp_path / "out"), output_format="webdataset", **more
    )
    assert (done.rows, done.successes) == (2, 2)
    if more:
        table = pq.read_table(tmp_path / "out/00000.parquet")
        assert table.schema.names[:3] == ["n", "url", "key"]
        assert table.column("n").to_pylist() == [1, 2]


def test_rows_that_are_no_urls_are_in_the_parquet_too(tmp_path: Path, site: Web) -> None:
    rows: list[dict[str, object]] = [{"url": 7}, {"url": site.url("/good/1.jpg")}, {"url": "no url"}]
    run(site, url_list=str(write_list(tmp_path, rows)), input_format="jsonl", output_folder=str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert [(row["key"], row["error_message"]) for row in table] == [
        ("000000000", "unknown url type"), ("000000001", None), ("000000002", "unknown url type"),
    ]  # fmt: skip
    assert (tmp_path / "out/00000/000000001.jpg").exists()


def test_faces_are_blurred_as_a_column_says(tmp_path: Path, site: Web) -> None:
    url = site.url("/good/1.jpg")
    rows: list[dict[str, object]] = [{"url": url, "faces": [[0, 0, 1, 1]]}, {"url": f"{url}?plain", "faces": []}]
    run(
        site, url_list=str(write_list(tmp_path, rows)), input_format="jsonl", output_folder=str(tmp_path / "out"),
        bbox_col="faces",
    )  # fmt: skip
    table = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert [(row["faces"], row["status"]) for row in table] == [([[0.0, 0.0, 1.0, 1.0]], "success"), ([], "success")]
    blurred, plain = ((tmp_path / f"out/00000/00000000{number}.jpg").read_bytes() for number in (0, 1))
    assert blurred != plain
    cells = f'url,faces\n{url},"[[0, 0, 1, 1]]"\n{url}?plain,\n{url}?bad,x\n'
    (tmp_path / "list.csv").write_text(cells, encoding="utf-8")
    run(
        site, url_list=str(tmp_path / "list.csv"), input_format="csv", output_folder=str(tmp_path / "cells"), bbox_col="faces",
        save_additional_columns=["faces"],
    )  # fmt: skip
    table = pq.read_table(tmp_path / "cells/00000.parquet").to_pylist()
    assert [row["faces"] for row in table] == [[[0.0, 0.0, 1.0, 1.0]], None, None]
    assert [row["status"] for row in table] == ["success", "success", "failed_to_download"]
    assert (tmp_path / "cells/00000/000000000.jpg").read_bytes() == blurred


def test_boxes_are_blurred_from_a_column_of_boxes_only(tmp_path: Path) -> None:
    write_list(tmp_path, [{"url": "http://a.example/1.jpg", "text": "a", "faces": "x"}])
    (tmp_path / "catalog.yaml").write_text("entries: {x: {files: [list.jsonl], carry: {faces: string}}}", encoding="utf-8")
    text = (
        "name: x\nsource: {catalog: {file: catalog.yaml, entry: x}}\nstages:\n  - download: {image_size: 32, bbox_col: faces}\n"
    )
    with pytest.raises(
        ConfigError, match=r"plan.yaml:4: `download` needs boxes, but `faces` is string[\s\S]*carry: {faces: boxes}"
    ):
        parse_plan(parse_yaml(text, "plan.yaml"), tmp_path)


@pytest.mark.fault("Q01")
@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_an_expected_hash_is_checked(tmp_path: Path, site: Web, kind: str) -> None:
    if kind != "sha256" and "verify_hash" not in Download.model_fields:
        pytest.skip("the download stage checks no hash")
    good = hashlib.new(kind, PAGES["/good/1.jpg"][2]).hexdigest()
    rows: list[dict[str, object]] = [{"url": site.url("/good/1.jpg"), "h": good}, {"url": site.url("/good/2.jpg"), "h": good}]
    run(
        site, url_list=str(write_list(tmp_path, rows)), input_format="jsonl", output_folder=str(tmp_path / "out"),
        verify_hash=["h", kind], compute_hash=kind,
    )  # fmt: skip
    table = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert [(row["status"], row["error_message"]) for row in table] == [
        ("success", None),
        ("failed_to_download", "hash mismatch"),
    ]
    assert list(table[0])[:2] == [kind, "url"]
    assert table[0][kind] == good
    assert sorted(path.name for path in (tmp_path / "out/00000").iterdir()) == ["000000000.jpg", "000000000.json"]


def test_the_same_command_again_fetches_nothing_and_writes_nothing(tmp_path: Path, site: Web) -> None:
    urls = write_urls(tmp_path, site, ["/good/1.jpg?again", "/missing?again"])
    options = {"url_list": urls, "output_folder": str(tmp_path / "out"), "output_format": "webdataset"}
    first = run(site, **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*")}
    second = run(site, **options)
    assert (first.written, second.written, second.kept) == (1, 0, 1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*")} == before
    assert site.requests["/good/1.jpg?again"] == 1
    (tmp_path / "out/00000_stats.json").unlink()  # as if killed while the shard was written
    assert run(site, **options).written == 1


def test_extend_goes_on_behind_the_last_shard_and_overwrite_begins_anew(tmp_path: Path, site: Web) -> None:
    out = tmp_path / "out"
    options = {"output_folder": str(out), "output_format": "webdataset", "number_sample_per_shard": 2}
    run(site, url_list=write_urls(tmp_path, site, ["/good/1.jpg", "/good/2.jpg", "/good/3.jpg"]), **options)
    run(site, url_list=write_urls(tmp_path, site, ["/good/4.jpg"]), incremental_mode="extend", **options)
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    with tarfile.open(out / "00002.tar") as tar:
        assert tar.getnames()[0] == "000020.jpg"
    run(site, url_list=write_urls(tmp_path, site, ["/good/5.jpg"]), incremental_mode="overwrite", **options)
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar"]


def test_a_folder_of_another_program_is_left_alone(tmp_path: Path, site: Web) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "00000_stats.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds shards that another program made"):
        run(site, url_list=write_urls(tmp_path, site, ["/good/1.jpg"]), output_folder=str(out))


def test_shards_appear_while_the_run_goes_on(tmp_path: Path, site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdata.report.like_img2dataset.LOOK_S", 0.02)
    seen: list[list[str]] = []

    class Watched(InlineExecutor):
        def submit(self, task: Task) -> Future[TaskReport]:
            time.sleep(1.0)
            seen.append(sorted(path.name for path in (tmp_path / "out").glob("*_stats.json")))
            return super().submit(task)

    options = {"output_folder": str(tmp_path / "out"), "number_sample_per_shard": 1, "image_size": 32}
    urls = write_urls(tmp_path, site, ["/good/1.jpg", "/good/2.jpg", "/missing"])
    made = build(Flags, Document("flags", {"url_list": urls, **options}))
    _, exported = Job(made, (site.allow,)).run(Watched())
    assert (exported.rows, exported.successes) == (3, 2)
    assert seen[0] == []
    assert seen[-1][:1] == ["00000_stats.json"]


def test_img2dataset_itself_finishes_what_we_began(tmp_path: Path, site: Web) -> None:
    urls = [f"/good/{number}.jpg" for number in range(6)]
    options: dict[str, object] = {
        "output_folder": str(tmp_path / "out"), "output_format": "webdataset", "number_sample_per_shard": 2, "image_size": 32,
        "thread_count": 2,
    }  # fmt: skip
    run(site, url_list=write_urls(tmp_path, site, urls[:4]), **options)
    ours = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("0*")}
    img2dataset(url_list=write_urls(tmp_path, site, urls), **options)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in ours} == ours
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    keys = [key for path in sorted((tmp_path / "out").glob("*.parquet")) for key in pq.read_table(path).column("key").to_pylist()]
    assert sorted(keys) == ["000000", "000001", "000010", "000011", "000020", "000021"]
