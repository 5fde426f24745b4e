"""`mmdata retry`: only what failed is fetched again, what is recovered is merged in, and nothing that is there changes."""

import asyncio
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmdata.cli.main import app
from mmdata.engine import Runner, RunResult, RunStore
from mmdata.engine.gc import collect
from mmdata.engine.retry import retry_runner
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan, load_plan
from mmdata.shards import open_corpus, verify
from tests.scores.small import rows

NAMES = ("red", "green", "blue", "yellow", "black", "white")


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "PNG")
    return buffer.getvalue()


class Moody:
    """A server of pictures by name; while `down` it answers 503 for those named so, and 404 for `gone`."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.port = 0
        self._loop = asyncio.new_event_loop()

    async def serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._stop = asyncio.Event()
        ready.set()
        await self._stop.wait()
        server.close()

    def run(self, ready: threading.Event) -> None:
        self._loop.run_until_complete(self.serve(ready))
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        name = head.split()[1].strip("/").removesuffix(".png")
        self.asked[name] += 1
        body = picture(name) if name in NAMES else b""
        status = "503 Busy" if name in self.down else "200 OK" if body else "404 Gone"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


@pytest.fixture
def web() -> Iterator[Moody]:
    moody, ready = Moody(), threading.Event()
    thread = threading.Thread(target=moody.run, args=(ready,))
    thread.start()
    assert ready.wait(10)
    yield moody
    moody.stop()
    thread.join(10)


def plan_of(home: Path, at_least: int = 1) -> Plan:
    lines = [json.dumps({"url": f"http://pictures.test/{name}.png", "text": f"a {name} bar"}) for name in (*NAMES, "gone")]
    (home / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (home / "catalog.yaml").write_text("entries:\n  x: {files: [list.jsonl]}\n", encoding="utf-8")
    (home / "plan.yaml").write_text(
        "name: retried\n"
        f"source: {{catalog: {{file: {home}/catalog.yaml, entry: x, partition_rows: 4}}}}\n"
        "stages:\n"
        "  - download: {image_size: 32, passes: 1, limits: {host_interval_s: 0, retries: 0, breaker: 100}}\n"
        f"  - measure\n  - keep: {{column: width, at_least: {at_least}}}\n"
        "sink: {shards: {samples: 100}}\n",
        encoding="utf-8",
    )
    return load_plan(home / "plan.yaml")


def allow(web: Moody) -> tuple[str, ...]:
    return (f"pictures.test=127.0.0.1:{web.port}", f"127.0.0.1:{web.port}")


def go(plan: Plan, home: Path, web: Moody) -> RunResult:
    return Runner(plan, str(home / "run"), allow(web)).execute(InlineExecutor(), quiet=True)


def texts(result: RunResult) -> list[str]:
    assert result.corpus is not None
    assert verify(result.corpus).whole
    corpus = open_corpus(result.corpus)
    return sorted(json.loads(corpus.read(place)["json"])["caption"] for place in range(len(corpus.sample_ids)))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_what_failed_is_fetched_again_and_merged_in(tmp_path: Path, web: Moody) -> None:
    plan = plan_of(tmp_path)
    web.down = {"red", "blue"}
    first = go(plan, tmp_path, web)
    assert (first.funnel["kept"], first.funnel["dropped"]) == (4, {"http_4xx": 1, "http_5xx": 2})
    before = bytes_of(tmp_path / "run/payload")
    web.down, web.asked = {"blue"}, Counter()
    runner = retry_runner(str(tmp_path / "run"), None, allow(web))
    assert [step.computed.least for step in runner.forecast().steps if step.stage == "download"] == [2]
    second = runner.execute(InlineExecutor(), quiet=True)
    assert {name: num for name, num in web.asked.items() if name in (*NAMES, "gone")} == {"red": 1, "blue": 1}
    assert (second.generation, second.funnel["kept"]) == (2, 5)
    assert second.computed["measure"] == 1
    after = bytes_of(tmp_path / "run/payload")
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in set(after) - set(before)} == {"download.r1"}
    assert "a red bar" in texts(second)
    assert "a red bar" not in texts(first)


def test_a_run_after_a_retry_keeps_what_it_recovered_and_asks_nobody(tmp_path: Path, web: Moody) -> None:
    web.down = {"red", "blue"}
    go(plan_of(tmp_path), tmp_path, web)
    web.down = {"blue"}
    retry_runner(str(tmp_path / "run"), ["http_5xx"], allow(web)).execute(InlineExecutor(), quiet=True)
    web.down, web.asked = set(), Counter()
    assert not go(plan_of(tmp_path), tmp_path, web).fresh
    stricter = go(plan_of(tmp_path, at_least=2), tmp_path, web)
    assert (stricter.funnel["kept"], web.asked) == (5, Counter())
    third = retry_runner(str(tmp_path / "run"), None, allow(web)).execute(InlineExecutor(), quiet=True)
    assert third.funnel["kept"] == 6
    assert {name for name in web.asked if name in (*NAMES, "gone")} == {"blue"}
    assert {path.name for path in (tmp_path / "run/payload").rglob("download*")} == {"download", "download.r1", "download.r2"}
    freed = collect(str(tmp_path / "run"))
    assert freed.kept == [third.generation]
    facts = sorted(path.name for path in (tmp_path / "run/facts").rglob("download*"))
    assert facts == sorted(f"{path.parent.name}-{path.stem}.parquet" for path in (tmp_path / "run/payload").rglob("*.tar"))
    assert not go(plan_of(tmp_path, at_least=2), tmp_path, web).fresh
    assert len(texts(third)) == 6


def test_a_retry_that_was_killed_goes_on_with_its_own_round(tmp_path: Path, web: Moody) -> None:
    web.down = {"red", "blue", "black"}
    go(plan_of(tmp_path), tmp_path, web)
    web.down = set()

    class Stopping(InlineExecutor):
        num = 0

        def submit(self, task):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            self.num += 1
            if self.num == 2:
                raise KeyboardInterrupt
            return super().submit(task)

    with pytest.raises(KeyboardInterrupt):
        retry_runner(str(tmp_path / "run"), None, allow(web)).execute(Stopping(), quiet=True)
    web.asked = Counter()
    done = retry_runner(str(tmp_path / "run"), None, allow(web)).execute(InlineExecutor(), quiet=True)
    assert (done.generation, done.funnel["kept"]) == (2, 6)
    assert RunStore(str(tmp_path / "run")).read_json("generations/2.json")["retries"].popitem()[1] == [
        sorted({"dns", "conn_reset", "http_5xx", "short_body", "throttled", "timeout_connect", "timeout_headers",
                "timeout_idle", "timeout_total", "too_slow"})
    ]  # fmt: skip
    assert {name for name in web.asked if name in (*NAMES, "gone")} < {"red", "blue", "black"}


def test_a_recovered_block_is_matched_with_its_documents_texts_and_the_others_keep_their_values(
    tmp_path: Path, web: Moody
) -> None:
    blocks: list[dict[str, str]] = [{"text": "a red bar"}, {"image": "red"}, {"text": "a blue bar"}, {"image": "blue"}]
    line = {
        "images": [f"http://pictures.test/{block['image']}.png" if "image" in block else None for block in blocks],
        "texts": [block.get("text") for block in blocks],
    }
    plan_of(tmp_path)
    (tmp_path / "list.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (tmp_path / "catalog.yaml").write_text("entries:\n  x: {files: [list.jsonl], shape: documents}\n", encoding="utf-8")
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    scored = "  - clip_score: {scorer: {fake: true}, embeddings: [image]}\n  - match_texts: {scorer: {fake: true}}\n"
    (tmp_path / "plan.yaml").write_text(re.sub(r"  - measure\n.*\nsink.*\n", scored, text), encoding="utf-8")
    names = ("position", "clip_match", "clip_match_before", "clip_match_after", "clip_match_position")
    web.down = {"blue"}
    go(load_plan(tmp_path / "plan.yaml"), tmp_path, web)
    first = {row["position"]: row for row in rows(tmp_path / "run", *names)}
    assert (first[1]["clip_match_before"] is None, first[3]["clip_match_before"]) == (False, None)
    web.down = set()
    retry_runner(str(tmp_path / "run"), None, allow(web)).execute(InlineExecutor(), quiet=True)
    second = {row["position"]: row for row in rows(tmp_path / "run", *names)}
    assert second[1] == first[1]
    fresh = go(load_plan(tmp_path / "plan.yaml"), tmp_path / "fresh", web)
    assert fresh.funnel["kept"] == 4
    assert (
        second[3]["clip_match_before"]
        == {row["position"]: row for row in rows(tmp_path / "fresh/run", *names)}[3]["clip_match_before"]
    )


@pytest.mark.parametrize(("classes", "match"), [
    (["dn"], r"no outcome is called `dn`[\s\S]*did you mean `dns`"),
    (["not_media"], r"`not_media` is final[\s\S]*those that may change are: conn_reset, dns"),
])  # fmt: skip
def test_classes_that_are_none_are_refused(classes: list[str], match: str, tmp_path: Path, web: Moody) -> None:
    go(plan_of(tmp_path), tmp_path, web)
    with pytest.raises(ConfigError, match=match):
        retry_runner(str(tmp_path / "run"), classes)


def test_failures_are_told_by_class_and_host_with_what_to_do(tmp_path: Path, web: Moody) -> None:
    web.down = {"red", "blue", "black"}
    go(plan_of(tmp_path), tmp_path, web)
    told = CliRunner().invoke(app, ["failures", str(tmp_path / "run")]).stdout
    assert told.splitlines()[0] == "4 of 7 rows failed (57%)"
    assert " 75% http_5xx (3): servers are in trouble: wait, then `mmdata retry` asks again" in told
    assert "most: pictures.test 3" in told
    found = json.loads(CliRunner().invoke(app, ["failures", str(tmp_path / "run"), "--json"]).stdout)
    assert [(each["outcome"], each["rows"]) for each in found["classes"]] == [("http_5xx", 3), ("http_4xx", 1)]
    web.down = set()
    said = CliRunner().invoke(app, ["retry", str(tmp_path / "run"), *[f"--allow={each}" for each in allow(web)]])
    assert said.exit_code == 0, said.output
    assert RunStore(str(tmp_path / "run")).read_json("funnel.json")["kept"] == 6


def test_where_nothing_may_pass_nobody_is_asked_and_no_generation_is_made(tmp_path: Path, web: Moody) -> None:
    go(plan_of(tmp_path), tmp_path, web)
    web.asked = Counter()
    said = CliRunner().invoke(app, ["retry", str(tmp_path / "run"), *[f"--allow={each}" for each in allow(web)]])
    assert said.exit_code == 0
    assert "there is nothing to ask again" in said.output
    assert (web.asked, RunStore(str(tmp_path / "run")).last_number()) == (Counter(), 1)
