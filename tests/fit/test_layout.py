"""Our output against img2dataset's own on the same list, field by field."""

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.config import Document, build
from mmdata.executors import InlineExecutor
from mmdata.plan.img2dataset import Flags
from mmdata.report.export import Exported
from mmdata.report.like_img2dataset import Job
from mmdata.schema import OUTCOMES
from mmdata.shards.img2dataset import Item, Layout, Shard
from mmdata.shards.words import WORDS, outcome_of, words
from mmdata.stages.download import Download
from tests.fit.conftest import img2dataset, write_list
from tests.fit.web import Web

PATHS = (
    "/missing",
    *(f"/good/{number}.jpg" for number in range(9)),
    "/html",
    "/png",
    "/noai",
    "/broken",
    "/gone",
    "/small",
)

# One image is too small, where our download judges sizes.
JUDGED = {"min_image_size": 30} if "min_image_size" in Download.model_fields else {}


def rows(site: Web, paths: tuple[str, ...] = PATHS) -> list[dict[str, object]]:
    return [
        {"url": site.url(path), "caption": None if number == 3 else f"text {number}", "score": number / 2, "num": number}
        for number, path in enumerate(paths)
    ]


def ours(site: Web, **options: object) -> Exported:
    flags = build(Flags, Document("flags", options))
    result, exported = Job(flags, (site.allow,)).run(InlineExecutor())
    assert not result.failed
    return exported


def options(folder: Path, out: str, **more: object) -> dict[str, object]:
    return {
        "url_list": str(folder / "list.jsonl"), "output_folder": str(folder / out), "input_format": "jsonl",
        "caption_col": "caption", "save_additional_columns": ["score", "num"], "output_format": "webdataset",
        "thread_count": 4, "number_sample_per_shard": 10, "timeout": 5, "image_size": 64, **JUDGED, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, site: Web) -> Path:
    """A folder with img2dataset's output in `theirs` and ours in `ours`, of one list in two shards."""
    folder = tmp_path_factory.mktemp("both")
    write_list(folder, rows(site))
    img2dataset(**options(folder, "theirs"))
    ours(site, **options(folder, "ours"))
    return folder


def members(path: Path) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return {info.name: (info, tar.extractfile(info).read()) for info in tar}  # type: ignore[union-attr]


def by_key(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(path).sort_by("key").to_pylist()
    return found


def test_the_folder_lists_the_same_files(both: Path) -> None:
    names = [sorted(path.name for path in (both / out).iterdir() if not path.is_dir()) for out in ("theirs", "ours")]
    assert names[0] == names[1]
    assert names[1] == ["00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet", "00001.tar", "00001_stats.json"]


@pytest.mark.parametrize("shard", ["00000", "00001"])
def test_tar_members_have_the_same_names_mode_and_owner(both: Path, shard: str) -> None:
    theirs, mine = (members(both / out / f"{shard}.tar") for out in ("theirs", "ours"))
    assert sorted(theirs) == list(mine)
    for name, (info, _) in mine.items():
        other = theirs[name][0]
        assert (info.mode, info.uname, info.gname, info.uid, info.gid) == (
            other.mode, other.uname, other.gname, other.uid, other.gid,
        )  # fmt: skip
        assert info.mtime == 0
    keys = [name.split(".")[0] for name in theirs]
    for key in dict.fromkeys(keys):
        assert [name for name in theirs if name.startswith(key)] == [name for name in mine if name.startswith(key)]


@pytest.mark.parametrize("shard", ["00000", "00001"])
def test_texts_and_json_say_the_same_in_the_same_order(both: Path, shard: str) -> None:
    theirs, mine = (members(both / out / f"{shard}.tar") for out in ("theirs", "ours"))
    for name, (_, data) in mine.items():
        if name.endswith(".txt"):
            assert data == theirs[name][1]
        if name.endswith(".json"):
            assert data.decode() == theirs[name][1].decode()


@pytest.mark.parametrize("shard", ["00000", "00001"])
def test_the_parquet_has_the_same_schema_and_values(both: Path, shard: str) -> None:
    theirs, mine = (both / out / f"{shard}.parquet" for out in ("theirs", "ours"))
    assert pq.read_schema(mine).equals(pq.read_schema(theirs))
    assert by_key(mine) == by_key(theirs)
    statuses = pq.read_table(mine).column("key").to_pylist()
    assert statuses == sorted(statuses)


@pytest.mark.parametrize("shard", ["00000", "00001"])
def test_the_stats_have_the_same_fields_and_counts(both: Path, shard: str) -> None:
    theirs, mine = (json.loads((both / out / f"{shard}_stats.json").read_text()) for out in ("theirs", "ours"))
    assert list(mine) == list(theirs)
    for name in ("duration", "start_time", "end_time"):
        assert mine.pop(name) == 0
        theirs.pop(name)
    assert mine == theirs


def test_files_and_parquet_are_laid_out_as_there(tmp_path: Path, site: Web) -> None:
    write_list(tmp_path, rows(site, ("/good/1.jpg", "/missing", "/good/2.jpg")))
    for form in ("files", "parquet"):
        img2dataset(**options(tmp_path, f"theirs/{form}", output_format=form))
        ours(site, **options(tmp_path, f"ours/{form}", output_format=form))
    theirs, mine = (tmp_path / out for out in ("theirs", "ours"))
    names = [sorted(path.relative_to(out).as_posix() for path in out.glob("[fp]*/0*/*")) for out in (theirs, mine)]
    assert names[0] == names[1]
    assert len(names[1]) == 6
    for name in names[1]:
        if not name.endswith(".jpg"):
            assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    for form in ("files", "parquet"):
        tables = [pq.read_table(out / form / "00000.parquet").sort_by("key") for out in (theirs, mine)]
        assert tables[0].schema.equals(tables[1].schema)
        images = ["jpg"] if form == "parquet" else []
        assert tables[0].drop_columns(images).equals(tables[1].drop_columns(images))


def test_parquet_row_groups_hold_100_rows(tmp_path: Path) -> None:
    failed = Item({"url": "http://example.org/"}, "failed_to_download", "HTTP Error 404: Not Found")
    Shard(tmp_path, 0, 10_000, (pa.field("url", pa.string()),)).write((row, failed) for row in range(230))
    meta = pq.read_metadata(tmp_path / "00000.parquet")
    assert [meta.row_group(group).num_rows for group in range(meta.num_row_groups)] == [100, 100, 30]


@pytest.mark.parametrize(("rows", "digits", "key"), [(10_000, 5, "000010005"), (10_000, 8, "000000010005"), (100, 5, "0000105")])
def test_keys_are_as_wide_as_img2datasets(tmp_path: Path, rows: int, digits: int, key: str) -> None:
    assert Shard(tmp_path, 1, rows, (), Layout(oom_shard_count=digits)).key(5) == key


def test_every_outcome_has_words_and_they_lead_back_to_a_failure_of_its_kind() -> None:
    assert set(OUTCOMES) <= set(WORDS)
    for outcome in OUTCOMES:
        status, message = words(outcome)
        assert (outcome_of(status, message) is None) == (outcome == "ok")
    assert words("http_4xx", "HTTP 404") == ("failed_to_download", "HTTP Error 404: Not Found")
    assert words("throttled", "HTTP 429") == ("failed_to_download", "HTTP Error 429: Too Many Requests")
    assert words("http_5xx", "HTTP 599") == ("failed_to_download", "HTTP Error 599: ")
    assert words("conn_reset", "connection refused")[1] == "<urlopen error [Errno 111] Connection refused>"
    for message in ("image too small", "image area too large", "aspect ratio too large"):
        assert words(outcome_of("failed_to_resize", message) or "ok") == ("failed_to_resize", message)


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("HTTP Error 404: Not Found", "http_4xx"),
        ("HTTP Error 503: Service Unavailable", "http_5xx"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error timed out>", "timeout_connect"),
        ("The read operation timed out", "timeout_idle"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate>", "tls"),
        ("<urlopen error [Errno 111] Connection refused>", "conn_reset"),
        ("IncompleteRead(10 bytes read, 90 more expected)", "short_body"),
        ("unknown url type: 'x'", "bad_row"),
        ("anything else", "bad_response"),
    ],
)
def test_img2datasets_messages_mean_an_outcome(message: str, outcome: str) -> None:
    assert outcome_of("failed_to_download", message) == outcome
