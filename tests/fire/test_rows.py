"""Ids, bad rows and definitions from people who wish us ill (faults T16, T19, T20)."""

import csv
import itertools
import json
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mmdata.demo import DemoServer
from mmdata.errors import ConfigError
from mmdata.plan import load_plan
from mmdata.stages.download import Download
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.split_captions import SplitCaptions
from mmdata.stages.text_rules import TextRules
from tests.conftest import encode, write_yaml
from tests.corpus import draw
from tests.fire.lists import IMAGES, entry, run_plan, shard_samples, write_lines
from tests.fire.seeds import seeds

Figure = Callable[[str, object], None]
IDS = (
    "../../x", "/abs/x", "a/../b", "x" * 300, "a.b.c", "..", ".", "CON", "nul.txt", "trailing ", " ", "", "e\u0301", "\u00e9",
    "Twin", "twin", "-rf", "--", "@list", "%d", "a\nb", "a\tb", "*", "\u202e", "0" * 31, "A" * 32, "g" * 32,
    "0" * 32 + "\n", "f" * 32,
)  # fmt: skip
NAMES = ("-rf", "CON", "a b ", "Twin", "twin", "a\nb", "e\u0301", "\u00e9", "x" * 200)


@pytest.mark.fault("T16")
def test_T16_ids_are_data_and_never_names(tmp_path: Path, server: DemoServer) -> None:
    write_lines(tmp_path / "a.jsonl", [{"url": IMAGES[n], "text": f"number {n}", "id": ident} for n, ident in enumerate(IDS)])
    source = entry(tmp_path, "files: [a.jsonl], carry: {id: string}")
    result = run_plan(tmp_path, source, Download(image_size=32), sink=Shards(samples=7), allow=server.allow)
    facts = [json.loads(sample["json"]) for sample in shard_samples(result)]
    assert {fact["caption"]: fact["id"] for fact in facts} == {f"number {n}": ident for n, ident in enumerate(IDS)}
    ours = {fact["id"]: fact["sample_id"] for fact in facts}
    assert ours.pop("f" * 32) == "f" * 32  # 128 bits in lower-case hex, as DataComp has them
    assert not set(ours) & set(ours.values())
    assert len(set(ours.values())) == len(IDS) - 1
    for path in (tmp_path / "run").rglob("*.tar"):
        with tarfile.open(path) as tar:
            assert all(member.isfile() and member.name.split(".")[0].isalnum() for member in tar)
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside == {"a.jsonl", "catalog.yaml", "run"}


@pytest.mark.fault("T16")
def test_T16_nor_do_file_names_name_anything(tmp_path: Path) -> None:
    home = tmp_path / "images"
    home.mkdir()
    for number, name in enumerate(NAMES):
        (home / f"{name}.png").write_bytes(encode(draw("red", "bar")))
        (home / f"{name}.txt").write_text(f"number {number}", encoding="utf-8")
    result = run_plan(tmp_path, Folder(path=str(home)), Measure(), sink=Shards())
    assert sorted(sample["txt"].decode() for sample in shard_samples(result)) == [f"number {n}" for n in range(len(NAMES))]


BAD_TEXTS = ("", " ", "http://a b/", "http://host/\0", "http://host/\x1b[31m", "no\nurl")
BAD_JSON = (
    "{", "null", "7", '["http://host/x"]', '{"url": 7}', '{"url": null}', '{"text": "no url"}', '{"url": ["http://host/x"]}',
    '{"url": "http://host/x", "text": 7}', '{"url": "http://host/x", "text": {"a": 1}}', '{"url": "http://host/x", "n": NaN}',
    '{"url": "http://host/x", "n": "many"}', '{"url": "http://host/x", "n": 1.5}', '{"url": "http://host/x", "n": 1e400}',
    '{"url": "http://host/x", "n": [1]}', '{"url": "http://host/\\u0000"}', '{"url": "http://host/\\ud800"}',
    '{"url": "http://host/x", "url": "http://host/y"}', "[" * 5000, '{"url": "http://host/x", "n": ' + "9" * 5000 + "}",
)  # fmt: skip


def write_good_and_bad(path: Path, good: list[dict[str, object]], bad: set[int], chance: random.Random) -> None:
    """Write rows in a format, those with a number in `bad` spoilt in one of the ways of that format."""
    if path.suffix == ".jsonl":
        lines = [chance.choice(BAD_JSON) if n in bad else json.dumps(row) for n, row in enumerate(good)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    rows = [dict(row) for row in good]
    for number in bad:
        if path.suffix == ".parquet":
            rows[number] |= chance.choice(
                [{"url": chance.choice((None, *BAD_TEXTS))}, {"n": chance.choice((1 << 40, -(1 << 40)))}]
            )
        else:
            rows[number] |= chance.choice(
                [{"url": chance.choice(BAD_TEXTS)}, {"n": "many"}, {"n": "1.5"}, {"n": "3", "extra": "x"}]
            )
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=chance.choice((7, 100, 1000)))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(good[0])
        writer.writerows(row.values() if chance.random() < 0.9 or n not in bad else [row["url"]] for n, row in enumerate(rows))


@pytest.mark.fault("T19")
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_T19_no_row_is_lost_or_made_up(tmp_path: Path, share: float, record_property: Figure) -> None:
    total = wrong = 0
    for seed, suffix in itertools.product(seeds(3, 30), (".jsonl", ".csv", ".parquet")):
        chance, home = random.Random(f"{seed} {suffix} {share}"), tmp_path / f"{seed}{suffix}"
        home.mkdir()
        num = chance.randrange(100, 400)
        bad = set(chance.sample(range(num), max(1, int(share * num))))
        captions: list[object] = [chance.choice((None, "", "one", "some more words", "some other words")) for _ in range(num)]
        good: list[dict[str, object]] = [
            {"url": f"http://host/{n}", "text": chance.choice(("one", "two words", "")), "n": n, "also": captions[n]}
            for n in range(num)
        ]
        write_good_and_bad(home / f"a{suffix}", good, bad, chance)
        fields = f"files: [a{suffix}], carry: {{n: int32}}, columns: {{captions: [also]}}"
        source = entry(home, fields, partition_rows=chance.choice((7, 64, 1000)))
        funnel = run_plan(home, source, SplitCaptions(), TextRules(min_words=2)).funnel
        assert (funnel["rows_in"], funnel["dropped"]["bad_row"]) == (num, len(bad)), (seed, suffix)
        assert funnel["rows_in"] + funnel["made_by_splits"] == funnel["kept"] + sum(funnel["dropped"].values()) + funnel["split"]
        assert funnel["split"] == num - len(bad)
        total, wrong = total + num, wrong + len(bad)
    record_property("figure", f"{wrong:,} bad rows among {total:,}: every one dropped as bad_row, every other accounted for")


@pytest.mark.fault("T19")
def test_T19_a_document_with_a_bad_block_is_accounted_for(tmp_path: Path) -> None:
    good: dict[str, object] = {"images": [None, "http://host/x"], "texts": ["a text", None]}
    broken: tuple[object, ...] = (
        {**good, "images": [None]},
        {**good, "images": "x"},
        {**good, "texts": ["a", "b"]},
        {"images": [], "texts": []},
        7,
    )
    write_lines(tmp_path / "a.jsonl", [good, *broken, {**good, "images": [None, "no url"]}, good])
    source = entry(tmp_path, "files: [a.jsonl], shape: documents")
    funnel = run_plan(tmp_path, source, TextRules()).funnel
    assert funnel["rows_in"] == 2 + len(broken) + 2 + 2  # a document that cannot be unrolled is one row
    assert funnel["dropped"] == {"bad_row": len(broken) + 1, "sample_incomplete": 1}
    assert funnel["kept"] == 4


PLAN = "name: x\nsource: {catalog: {file: catalog.yaml, entry: x, partition_rows: 5}}\nstages:\n  - text_rules: {min_words: 2}\n"
LETTERS = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in itertools.pairwise(LETTERS)
)


@pytest.mark.fault("T20")
@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:os.mkdir [marker]", "!!python/object/new:os.mkdir [marker]", "!!python/name:os.mkdir",
        "!!python/object/apply:subprocess.check_call [[mkdir, marker]]", "!!python/module:os", "!own {a: 1}", "!!binary aGk=",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [marker]", "? !!python/object/apply:os.mkdir [marker]\n: 1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["plan", "catalog"])
def test_T20_a_tag_runs_nothing(tmp_path: Path, payload: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "marker"
    with pytest.raises(BaseException, match=r".*"):  # what the payload does where it is believed
        raise KeyError(str(yaml.unsafe_load("!!python/object/apply:os.mkdir [marker]")))
    marker.rmdir()
    payload = payload if payload.startswith("?") else f"x: {payload}"
    write_yaml(tmp_path, PLAN if place == "catalog" else f"{PLAN}\n{payload}\n", "plan.yaml")
    write_yaml(tmp_path, "entries:\n  x: {files: [a.csv]}\n" + (f"{payload}\n" if place == "catalog" else ""), "catalog.yaml")
    with pytest.raises(ConfigError, match=rf"{place}.yaml:\d+: the tag `.*` is refused"):
        load_plan(tmp_path / "plan.yaml").source[0].scan()
    assert not marker.exists()


@pytest.mark.fault("T20")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"x.yaml:\d+: the document expands to more than 100,000 nodes"), (f"{BOMB}? *i\n: 1", r"x.yaml:\d+: "),
        ("a: &a [*a]", r"nests too deep"), ("[" * 20_000, r"nests too deep"), ("{a: " * 20_000, r"nests too deep"),
        ("- " * 20_000, r"nests too deep"), ("a: 1\na: 2", r"x.yaml:2: `a` is given twice"), ("a: {<<: {b: 1}}", "merge keys"),
        ("--- 1\n--- 2", r"another document"), ("a: \x00", r"not valid YAML"), ('a: "\\ud800"', r"half of a surrogate pair"),
        ('"\\ud800": a', r"half of a surrogate pair"), ("a: " + "x" * (9 << 20), r"longer than 8,388,608 characters"),
        ("? [a]\n: b", r"the tag `.*seq` is refused"), ("a: *b", r"undefined alias"), ("7", r"x.yaml:1: a plan is a mapping"),
        ("", r"a plan needs `name`"),
    ],
    ids=range(17),
)  # fmt: skip
def test_T20_yaml_that_swells_or_repeats_is_refused(tmp_path: Path, text: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        load_plan(write_yaml(tmp_path, text, "x.yaml"))
    assert time.monotonic() - started < 10


@pytest.mark.fault("T20")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("min_words", "min_wrods", r"plan.yaml:4: `text_rules` has no key `min_wrods`[\s\S]*did you mean `min_words`"),
        ("entry: x", "entry: x, enrty: y", r"plan.yaml:2: `catalog` has no key `enrty`"),
        ("stages", "staegs", r"plan.yaml:3: a plan has no key `staegs`"),
        ("min_words: 2", "min_words: two", r"plan.yaml:4: `min_words`: .*integer.*not 'two'"),
        ("min_words: 2", "min_words: '2'", r"plan.yaml:4: `min_words`: '2' is text, not a number"),
        ("min_words: 2", "min_words: true", r"plan.yaml:4: `min_words`: True is a flag, not a number"),
        ("min_words: 2", "min_words: 1.5", r"plan.yaml:4: `min_words`: .*not 1.5"),
        ("min_words: 2", "min_words: [2]", r"plan.yaml:4: `min_words`: .*not \[2\]"),
        ("min_words: 2", "min_words: .inf", r"plan.yaml:4: `min_words`: "),
        ("min_words: 2", "min_words: " + "9" * 5000, r"plan.yaml:4: `min_words`: "),
        ("min_words: 2", "tag: on", r"plan.yaml:4: `tag`: 'on' is text, not a flag"),
        ("min_words: 2", "resources: {cpus: '1'}", r"plan.yaml:4: `resources.cpus`: '1' is text, not a number"),
        ("min_words: 2", "resources: 7", r"plan.yaml:4: `resources`: .*not 7"),
        ("partition_rows: 5", "partition_rows: null", r"plan.yaml:2: `partition_rows`: .*not None"),
        ("entry: x", "entry: 7", r"plan.yaml:2: `entry`: .*string.*not 7"),
        ("name: x", "name: ../x", r"plan.yaml:1: `name`: .*not '../x'"),
        ("name: x", "name: {a: b}", r"plan.yaml:1: `name`: .*string"),
        ("- text_rules: {min_words: 2}", "- 7", r"plan.yaml:4: a stage is one name with its fields, not a number"),
        ("- text_rules: {min_words: 2}", "- __class__", r"plan.yaml:4: no stage is called `__class__`"),
    ],
)  # fmt: skip
def test_T20_an_unknown_key_or_a_wrong_type_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_yaml(tmp_path, "entries:\n  x: {files: [a.csv]}\n", "catalog.yaml")
    text = PLAN.replace("catalog.yaml", str(tmp_path / "catalog.yaml"))
    load_plan(write_yaml(tmp_path, text))
    assert old in text
    with pytest.raises(ConfigError, match=message):
        load_plan(write_yaml(tmp_path, text.replace(old, new, 1)))


@pytest.mark.fault("T20")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("files: [a.csv], lisence: x", r"catalog.yaml:2: `x` has no key `lisence`[\s\S]*did you mean `licence`"),
        ("files: [a.csv], columns: {ulr: x}", r"catalog.yaml:2: `x` has no key `columns.ulr`[\s\S]*did you mean `url`"),
        ("files: a.csv", r"catalog.yaml:2: `files`: .*not 'a.csv'"), ("files: []", r"catalog.yaml:2: `files`: .*not \[\]"),
        ("files: [/etc/passwd]", r"`files`: .*stay inside"), ("files: [../a.csv]", r"`files`: .*stay inside"),
        ("files: ['file:///etc/passwd']", r"`files`: .*stay inside"), ("files: [a.csv], format: exe", r"`format`: .*not 'exe'"),
        ("files: [a.csv], carry: {n: pickle}", r"`carry.n`: .*not 'pickle'"), ("files: [a.csv], header: url", r"`header`: .*not"),
        ("files: [a.csv], carry: {url: string}", r"`carry`: `url` is a name that every row has already"),
    ],
)  # fmt: skip
def test_T20_so_it_is_in_a_catalog(tmp_path: Path, fields: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        entry(tmp_path, fields).scan()
