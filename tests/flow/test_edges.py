"""Plans and inputs at the edge: nothing left, odd orders of stages, documents with gaps, folders changed under a run."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from mmdata.engine import Runner, RunResult
from mmdata.errors import ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.loader import read_sample
from mmdata.plan import Plan
from mmdata.shards import Corpus, open_corpus
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Catalog, Folder
from mmdata.stages.split_captions import SplitCaptions
from mmdata.stages.text_rules import TextRules
from mmdata.stages.verbs import Resources, Stage
from tests.conftest import encode, write_yaml
from tests.corpus import draw


def images(folder: Path, num: int, text: str = "a red square {}") -> Folder:
    folder.mkdir(exist_ok=True)
    for number in range(num):
        (folder / f"{number}.png").write_bytes(encode(draw("red", "bar" if number % 2 else "square")))
        (folder / f"{number}.txt").write_text(text.format(number), encoding="utf-8")
    return Folder(path=str(folder), partition_rows=2)


def run(home: Path, source: Folder | Catalog, *stages: Stage, sink: Shards | None = None) -> RunResult:
    plan = Plan(name="edge", source=(source,), stages=stages, sink=sink or Shards(samples=3))
    return Runner(plan, str(home / "run")).execute(InlineExecutor(), quiet=True)


def corpus(result: RunResult) -> Corpus:
    assert result.corpus is not None
    return open_corpus(result.corpus)


def test_a_partition_of_which_nothing_is_left_costs_nothing(tmp_path: Path) -> None:
    source = images(tmp_path / "i", 4)
    (tmp_path / "i/0.txt").write_text("x", encoding="utf-8")
    (tmp_path / "i/1.txt").write_text("x", encoding="utf-8")
    stages = (SplitCaptions(), TextRules(min_chars=5), Measure(), Dedupe(by="sha256"), Keep(column="width", at_least=1))
    result = run(tmp_path, source, *stages)
    assert result.funnel["dropped"] == {"text_short": 2}
    assert len(corpus(result).samples) == 2


def test_a_run_of_which_nothing_is_left_makes_an_empty_corpus(tmp_path: Path) -> None:
    result = run(tmp_path, images(tmp_path / "i", 3), TextRules(min_chars=5000), Measure(), Dedupe(by="sha256"))
    assert result.funnel["kept"] == 0
    assert len(corpus(result).samples) == 0


def test_dedupe_may_come_first_and_twice(tmp_path: Path) -> None:
    stages = (Dedupe(by="text"), Measure(), Dedupe(by="sha256"), Keep(column="width", at_least=1))
    result = run(tmp_path, images(tmp_path / "i", 6), *stages)
    assert result.funnel["dropped"] == {"duplicate": 4}  # two pictures, whatever their texts


def test_a_broken_image_of_a_folder_costs_its_row(tmp_path: Path) -> None:
    source = images(tmp_path / "i", 3)
    (tmp_path / "i/1.png").write_bytes(b"no image")
    result = run(tmp_path, source, Measure())
    assert result.funnel["dropped"] == {"not_media": 1}
    found = corpus(result)
    assert not found.trusted
    assert read_sample(found, 0).blocks[0].image is not None


def test_media_that_nobody_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no stage looks at the source's images[\s\S]*add `measure`"):
        run(tmp_path, images(tmp_path / "i", 3))


def test_a_changed_text_is_noticed(tmp_path: Path) -> None:
    source = images(tmp_path / "i", 3)
    run(tmp_path, source, Measure())
    (tmp_path / "i/1.txt").write_text("another and longer text", encoding="utf-8")
    result = run(tmp_path, source, Measure())
    assert result.fresh
    texts = {read_sample(corpus(result), index).blocks[1].text for index in range(3)}
    assert "another and longer text" in texts


def test_resources_change_nothing(tmp_path: Path) -> None:
    source = images(tmp_path / "i", 3)
    first = run(tmp_path, source, Measure())
    again = run(tmp_path, source, Measure(resources=Resources(cpus=2)))
    assert (again.fresh, again.corpus) == (False, first.corpus)


def test_a_new_version_of_a_stage_is_a_new_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = images(tmp_path / "i", 3)
    run(tmp_path, source, Measure())
    monkeypatch.setattr(Measure, "version", 2)
    result = run(tmp_path, source, Measure())
    assert (result.generation, result.fresh, result.computed["measure"]) == (2, True, 3)
    assert not run(tmp_path, source, Measure()).fresh


def test_a_swap_of_stages_that_drop_nothing_is_another_corpus_with_the_same_samples(tmp_path: Path) -> None:
    source = images(tmp_path / "i", 3)
    keep, rules = Keep(column="width", at_least=1), TextRules()
    first, second = (run(tmp_path, source, Measure(), *order) for order in ((keep, rules), (rules, keep)))
    assert first.corpus != second.corpus
    assert (corpus(first).sample_ids == corpus(second).sample_ids).all()


def test_a_damaged_payload_never_reaches_the_corpus(tmp_path: Path) -> None:
    source = images(tmp_path / "i", 3)
    run(tmp_path, source, Measure())
    file = tmp_path / "i/1.png"
    data = bytearray(file.read_bytes())
    stat = file.stat()
    data[-20] ^= 1
    file.write_bytes(data)
    import os

    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # damage does not say so
    with pytest.raises(RunError, match=r"1.png: the \d+ bytes at 0 are not what was stored"):
        run(tmp_path, source, Measure(), Keep(column="width", at_least=1))


@pytest.mark.parametrize(("folder", "changed"), [("tasks", False), ("columns", True), ("generations", True), ("passes", False)])
def test_a_damaged_run_folder_names_the_file(tmp_path: Path, folder: str, changed: bool) -> None:
    source = images(tmp_path / "i", 3)
    run(tmp_path, source, Measure())
    for path in (tmp_path / "run" / folder).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    stages = (Measure(), Keep(column="width", at_least=1)) if changed else (Measure(),)
    with pytest.raises(RunError, match=rf"run/{folder}/.* is damaged"):
        run(tmp_path, source, *stages)


def documents(folder: Path, *records: Mapping[str, object]) -> Catalog:
    (folder / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    file = write_yaml(folder, "entries:\n  d: {files: [d.jsonl], shape: documents}\n", "catalog.yaml")
    return Catalog(file=str(file), entry="d")


def test_a_document_with_a_dropped_block_reads_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdata.demo import serving
    from mmdata.stages.download import Download

    url = "http://host-00.demo.localhost/images/lighthouse-matthew-gates.jpg"
    record = {"texts": ["x", "one text", None, "two texts"], "images": [None, None, url, None]}
    own = {**record, "id": "0" * 32}
    source = documents(tmp_path, own, own)  # published ids repeat: these are two documents all the same
    plan = Plan(name="d", source=(source,), stages=(Download(image_size=32), TextRules(min_chars=3)), sink=Shards())
    with serving() as server:
        result = Runner(plan, str(tmp_path / "run"), server.allow).execute(InlineExecutor(), quiet=True)
    found = corpus(result)
    assert len(found.samples) == 2
    for index in range(2):
        blocks = read_sample(found, index).blocks
        assert [(block.kind, block.text) for block in blocks] == [("text", "one text"), ("image", None), ("text", "two texts")]


def test_an_allowance_is_that_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdata.demo import serving
    from mmdata.stages.download import Download

    url = "http://host-00.demo.localhost/images/lighthouse-matthew-gates.jpg"
    source = documents(tmp_path, {"texts": ["some text", None], "images": [None, url]})
    plan = Plan(name="d", source=(source,), stages=(Download(image_size=32),), sink=Shards())
    started = Runner(plan, str(tmp_path / "run"), ("*.demo.localhost=127.0.0.1:9",))
    monkeypatch.setenv("FAILPOINT", "after-generation:1:raise")  # a run that ended before its first task
    with pytest.raises(OSError, match="fail-point after-generation"):
        started.execute(InlineExecutor(), quiet=True)
    monkeypatch.delenv("FAILPOINT")
    with serving() as server:
        result = Runner(plan, str(tmp_path / "run"), server.allow).execute(InlineExecutor(), quiet=True)
    assert result.funnel["kept"] == 2


def test_hostile_lists_cost_their_rows(tmp_path: Path) -> None:
    lines = [
        '{"url": "http://*/x", "text": "star", "n": 1}',
        '{"url": "http://[x/", "text": "bracket", "n": 2}',
        '{"url": 5, "text": "number", "n": 3}',
        '{"url": "http://host.invalid/x", "text": "lone \\ud800 surrogate", "n": 4}',
        '{"url": "http://host.invalid/y", "text": "bad cell", "n": "many"}',
        '{"url": "http://10.0.0.1/", "text": "private", "n": 6, "also": ["one", "two"]}',
        '{"url": "http://10.0.0.1/", "text": "private", "n": 7, "also": "three"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = "entries:\n  a: {files: [a.jsonl], carry: {n: int64}, columns: {captions: [also]}}\n"
    source = Catalog(file=str(write_yaml(tmp_path, text, "catalog.yaml")), entry="a")
    rows = [row for part in source.scan() for row in source.read(part).to_pylist()]
    assert [row["captions"] for row in rows[5:]] == [
        [{"text": "one", "kind": "also"}, {"text": "two", "kind": "also"}], [{"text": "three", "kind": "also"}],
    ]  # fmt: skip
    from mmdata.stages.download import Download

    plan = Plan(name="h", source=(source,), stages=(Download(image_size=32),))
    result = Runner(plan, str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    dropped = result.funnel["dropped"]
    assert sum(dropped.values()) == 7
    assert dropped["bad_row"] >= 2  # a number for a url, a word for a number
    assert dropped["blocked_address"] == 2
