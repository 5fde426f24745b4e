"""The download stage as a whole: what it checks before it stores, what it notes, how it ends."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmdata import demo
from mmdata.errors import ConfigError
from mmdata.media import decode
from mmdata.media.phash import phash
from mmdata.schema import ROW
from mmdata.shards.payloads import fetch_payload
from mmdata.stages.access import read_access
from mmdata.stages.deny import Deny
from mmdata.stages.download import Download
from mmdata.stages.verbs import Batch, Place, WorkerContext
from mmdata.storage import open_store
from tests.net.behaviours import jpeg
from tests.net.hostile import HostileServer, hostile_server

QUICK = {"host_interval_s": 0, "retries": 0, "backoff_s": 0.01, "breaker": 1000}
SECRET = "Bearer never-to-be-seen"


@pytest.fixture
def web() -> Iterator[HostileServer]:
    """A server whose log is this test's own."""
    with hostile_server() as server:
        yield server
        assert server.canary_hits == 0


def stage(**fields: Any) -> Download:  # noqa: ANN401 - fields of the stage
    return Download.model_validate({"image_size": 64, "limits": QUICK, "passes": 1, "signals": {"tdmrep_json": False}, **fields})


def download(
    folder: Path, web: HostileServer, this: Download, urls: list[str], **columns: list[Any]
) -> tuple[list[dict[str, Any]], Path]:
    """Return the rows that the stage makes, and the folder of the payload."""
    num = len(urls)
    table = pa.table({
        ROW: pa.array(range(num), pa.int64()), "url": urls, "sample_id": [f"{n:032x}" for n in range(num)],
        "text": [f"text {n}" for n in range(num)], "media": ["image"] * num, **columns,
    })  # fmt: skip
    context = WorkerContext(open_store(str(folder)), web.allow)
    with context.exits:
        made = this.open(context)(Batch(table, place=Place("payload/k/download", 0)))
    return made.to_pylist(), folder / "payload/k/download"


def members(payload: Path) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(payload / "00000.parquet").to_pylist() if row["status"] == "success"]


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def outcomes(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["_outcome"] for row in rows]


@pytest.mark.fault("Q01")
@pytest.mark.parametrize("kind", ["md5", "sha256", "sha512"])
def test_Q01_bytes_that_are_not_those_of_the_list_are_not_stored(tmp_path: Path, web: HostileServer, kind: str) -> None:
    good = hashlib.new(kind, jpeg()).hexdigest()
    this = stage(verify_hash={"column": "hash", "kind": kind})
    urls = [web.url("/ok"), web.url("/ok?2"), web.url("/ok?3")]
    rows, payload = download(tmp_path, web, this, urls, hash=[good.upper(), "0" * len(good), None])
    assert outcomes(rows) == [None, "hash_mismatch", None]  # a row without a hash has nothing to be held against
    failed = pq.read_table(payload / "00000.parquet").to_pylist()[1]
    assert (failed["status"], failed["error_message"]) == ("failed_to_download", "hash mismatch")
    assert [row["key"][-1] for row in members(payload)] == ["0", "2"]


@pytest.mark.fault("Q03")
def test_Q03_what_is_on_a_deny_list_is_never_stored_and_its_url_never_asked(tmp_path: Path, web: HostileServer) -> None:
    picture = jpeg(200, 160)
    web.on("/by-bytes", http_of(picture))
    photo = Path(demo.__file__).parent / "data/images/sand-castle-nathan-hawke-01.jpg"
    look = phash(decode(photo.read_bytes()))
    lists = {
        "urls": web.url("/by-url"), "domains": "# of the worst\ndenied.hostile.test\n",
        "sha256": hashlib.sha256(picture).hexdigest(), "phash": f"{look:016x}",
    }  # fmt: skip
    for name, text in lists.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    web.on("/by-look", http_of(photo.read_bytes()))
    web.on("/to-denied", redirect_of(web.url("/ok", host="sub.denied")))
    web.on("/other", http_of(stripes()))
    this = stage(robots=False, deny={name: str(tmp_path / name) for name in lists})
    urls = [
        web.url("/by-url"), web.url("/ok", host="denied"), web.url("/ok", host="sub.denied"), web.url("/to-denied"),
        web.url("/by-bytes"), web.url("/by-look"), web.url("/other"),
    ]  # fmt: skip
    rows, payload = download(tmp_path / "run", web, this, urls)
    assert outcomes(rows) == ["denylisted"] * 6 + [None]
    asked = Counter(hit.path for hit in web.hits)
    assert asked == {"/to-denied": 1, "/by-bytes": 1, "/by-look": 1, "/other": 1}
    assert len(members(payload)) == 1
    assert picture not in stored(tmp_path / "run")


@pytest.mark.fault("Q03")
@pytest.mark.parametrize(("name", "text", "match"), [
    ("sha256", "12 34", r"sha256:1: not 64 hex digits[\s\S]*one hash a line"),
    ("phash", "# ok\n\nzz", r"phash:3: not 16 hex digits"),
])  # fmt: skip
def test_Q03_a_list_that_is_wrong_is_refused_by_line(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=match):
        Deny.model_validate({name: str(tmp_path / name)}).open()
    with pytest.raises(ConfigError, match=r"deny list .*nowhere: no such file"):
        Deny(urls=str(tmp_path / "nowhere")).open()


def test_a_deny_list_that_grows_is_another_stage(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("a.test", encoding="utf-8")
    before = stage(deny={"domains": str(path)}).inputs()
    path.write_text("a.test\nb.test", encoding="utf-8")
    assert stage(deny={"domains": str(path)}).inputs() != before


@pytest.mark.fault("Q09")
def test_Q09_every_row_records_who_answered_when_and_by_which_rule(tmp_path: Path, web: HostileServer) -> None:
    web.on("/robots.txt", http_of(b"User-agent: *\nDisallow: /private\n", kind="text/plain"))
    web.on("/moved", redirect_of(web.url("/ok")))
    rows, payload = download(tmp_path, web, stage(), [web.url("/moved"), web.url("/private/1"), web.url("/status?code=410")])
    assert outcomes(rows) == [None, "robots", "http_4xx"]
    (path,) = (tmp_path / "facts/k").glob("download-00000.parquet")
    table = pq.read_table(path)
    good, refused, gone = table.to_pylist()
    assert (good["url"], good["final_url"], good["hops"]) == (web.url("/moved"), web.url("/ok"), [web.url("/moved")])
    assert (good["outcome"], good["address"], good["content_type"]) == ("ok", "127.0.0.1", "image/jpeg")
    assert (good["raw_sha256"], good["sha256"]) == (rows[0]["raw_sha256"], rows[0]["payload"]["sha256"])
    assert good["fetched_at"] is not None
    assert good["rule"].startswith("robots")
    assert (refused["outcome"], refused["rule"]) == ("robots", "robots: Disallow: /private")
    assert (gone["outcome"], gone["detail"]) == ("http_4xx", "HTTP 410")
    tools = {name.decode() for name in table.schema.metadata}
    assert {"mmdata", "pillow", "simplejpeg", "opencv-python-headless"} <= tools
    assert b"127.0.0.1" not in (payload / "00000_stats.json").read_bytes()


@pytest.mark.fault("N40")
def test_N40_a_url_in_many_rows_is_fetched_once_and_each_row_has_its_sample(tmp_path: Path, web: HostileServer) -> None:
    rows, payload = download(tmp_path, web, stage(robots=False), [web.url("/ok")] * 300)
    assert outcomes(rows) == [None] * 300
    assert [hit.path for hit in web.hits] == ["/ok"]
    found = members(payload)
    assert len({row["key"] for row in found}) == 300
    assert [row["caption"] for row in found] == [f"text {number}" for number in range(300)]
    store = open_store(str(tmp_path))
    assert len({fetch_payload(store, row["payload"]) for row in rows}) == 1


def test_rows_that_may_pass_are_asked_about_again_when_all_others_are_done(tmp_path: Path, web: HostileServer) -> None:
    web.on("/later", [unavailable(), unavailable(), http_of(jpeg())])
    web.on("/never", unavailable())
    urls = [web.url("/later"), web.url("/never"), web.url("/status?code=404"), web.url("/ok")]
    rows, _ = download(tmp_path, web, stage(robots=False, passes=3), urls)
    assert outcomes(rows) == [None, "http_5xx", "http_4xx", None]
    assert Counter(hit.path.partition("?")[0] for hit in web.hits) == {"/later": 3, "/never": 3, "/status": 1, "/ok": 1}
    facts = pq.read_table(next((tmp_path / "facts/k").iterdir())).to_pylist()
    assert [row["pass"] for row in facts] == [3, 3, 1, 1]


def test_a_download_always_ends(tmp_path: Path, web: HostileServer) -> None:
    this = stage(robots=False, patience_s=2.0, limits={**QUICK, "host_interval_s": 30})
    rows, _ = download(tmp_path, web, this, [web.url("/ok"), web.url("/ok?2"), web.url("/ok?3")])
    assert sorted(outcomes(rows), key=str) == [None, "throttled", "throttled"]


def test_what_an_access_file_holds_is_sent_to_its_host_and_seen_nowhere(tmp_path: Path, web: HostileServer) -> None:
    access = tmp_path / "access.yaml"
    access.write_text(f"headers:\n  a.hostile.test: {{Authorization: {SECRET}}}\n", encoding="utf-8")
    web.on("/away", redirect_of(web.url("/ok", host="b")))
    this = stage(robots=False, access=str(access))
    download(tmp_path / "run", web, this, [web.url("/away", host="a")])
    assert [(hit.host, hit.headers.get("authorization")) for hit in web.hits] == [
        ("a.hostile.test", SECRET), ("b.hostile.test", None),
    ]  # fmt: skip
    assert SECRET.encode() not in stored(tmp_path / "run")
    assert SECRET not in repr(read_access(str(access))) + this.model_dump_json()
    with pytest.raises(ConfigError, match=r"access file .*nowhere: no such file[\s\S]*every machine that fetches"):
        read_access(str(tmp_path / "nowhere"))


def test_original_bytes_are_kept_where_no_change_is_asked_for_and_are_not_trusted(tmp_path: Path, web: HostileServer) -> None:
    web.on("/small", http_of(jpeg(40, 30)))
    web.on("/large", http_of(jpeg(400, 300)))
    rows, _ = download(tmp_path, web, stage(robots=False, skip_reencode=True), [web.url("/small"), web.url("/large")])
    store = open_store(str(tmp_path))
    assert fetch_payload(store, rows[0]["payload"]) == jpeg(40, 30)
    assert [row["payload"]["trusted"] for row in rows] == [False, True]


def test_boxes_are_blurred(tmp_path: Path, web: HostileServer) -> None:
    web.on("/face", http_of(stripes()))
    columns = {"boxes": pa.array([[[0.0, 0.0, 0.5, 1.0]], []], pa.list_(pa.list_(pa.float64())))}
    urls = [web.url("/face"), web.url("/face?2")]
    web.on("/face?2", http_of(stripes()))
    rows, _ = download(tmp_path, web, stage(robots=False, bbox_col="boxes"), urls, **columns)
    store = open_store(str(tmp_path))
    blurred, plain = (decode(fetch_payload(store, row["payload"])).astype(int) for row in rows)
    left, right = blurred[:, :20] - plain[:, :20], blurred[:, 44:] - plain[:, 44:]
    assert abs(left).mean() > 10 * abs(right).mean()


def test_rows_of_one_url_have_all_of_their_boxes_blurred(tmp_path: Path, web: HostileServer) -> None:
    web.on("/face", http_of(stripes()))
    urls = [web.url("/face")] * 2
    columns = {"boxes": pa.array([[], [[0.0, 0.0, 0.5, 1.0]]], pa.list_(pa.list_(pa.float64())))}
    rows, _ = download(tmp_path, web, stage(robots=False, bbox_col="boxes"), urls, **columns)
    store = open_store(str(tmp_path))
    one, other = (fetch_payload(store, row["payload"]) for row in rows)
    assert one == other
    plain, _ = download(tmp_path / "plain", web, stage(robots=False), urls[:1])
    assert one != fetch_payload(open_store(str(tmp_path / "plain")), plain[0]["payload"])


def test_what_is_not_obeyed_is_said() -> None:
    this = stage(robots=False, signals={"noai": False})
    assert this.cautions() == ("robots.txt is not obeyed", "the opt-out `noai` is not obeyed")
    assert stage(signals={}).cautions() == ()


def test_the_stage_is_named_in_the_layout_as_img2dataset_would(tmp_path: Path, web: HostileServer) -> None:
    _, payload = download(tmp_path, web, stage(robots=False), [web.url("/ok"), web.url("/status?code=404")])
    stats = json.loads((payload / "00000_stats.json").read_text(encoding="utf-8"))
    assert stats["status_dict"] == {"success": 1, "HTTP Error 404: Not Found": 1}


def http_of(body: bytes, kind: str = "image/jpeg") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def redirect_of(url: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


def unavailable() -> bytes:
    return b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


def stripes() -> bytes:
    image = Image.new("RGB", (64, 64), "white")
    for left in range(0, 64, 8):
        image.paste((200, 20, 60), (left, 0, left + 4, 64))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
