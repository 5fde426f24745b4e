"""Plans and sources changed in every way that matters: what is kept and computed is said before, and is that after."""

import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from fire_stages import Trap, TrapFilter, TrapSplit

from mmdata import failpoint
from mmdata.demo import DemoServer
from mmdata.engine import Runner
from mmdata.engine.forecast import READ_AHEAD
from mmdata.engine.gc import collect
from mmdata.errors import ConfigError, RunError
from mmdata.plan import Plan
from mmdata.report.table import forecast_text
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.text_rules import TextRules
from mmdata.stages.verbs import Resources, Stage
from tests.conftest import encode
from tests.corpus import draw
from tests.fire.changes import Change, Stopping, digests, plan_of, write_lists
from tests.fire.seeds import seeds
from tests.flow.small import corpus_digest

pytestmark = pytest.mark.fault("W22")

SMALL = ("image_size: 48", "image_size: 40")
LOOSE = ("min_chars: 6", "min_chars: 3")
KEEPS = ("bytes, at_least: 1400, nulls: keep}", "aspect, at_most: 1.6, nulls: keep}")
DEDUPE = "  - dedupe: {by: raw_sha256}\n"
# A change, and lines of the forecast that say exactly what it comes to.
CHANGES: dict[str, tuple[list[tuple[str, str]], list[str]]] = {
    "an image size": ([SMALL], ["text_rules kept 47", "download computed 43", "measure computed 0 to 43"]),
    "a stricter threshold": ([("at_least: 1400", "at_least: 2000")], ["measure kept 38", "keep computed 38"]),
    "a looser threshold": (
        [("at_least: 1400", "at_least: 100")], ["keep computed 38", "keep kept 35, computed 3"],
    ),
    "a looser rule on texts": ([LOOSE], ["text_rules computed 47", "download kept 43, computed 4"]),
    "a rule on whole documents": ([("min_chars: 6", "min_chars: 12, scope: sample")], ["download kept 37"]),
    "a stage in the middle": (
        [(DEDUPE, "  - keep: {column: width, at_most: 47, nulls: keep}\n" + DEDUPE)],
        ["measure kept 38", "keep computed 29"],
    ),
    "a stage less": ([("  - text_rules: {min_chars: 6}\n", "")], ["download kept 43, computed 4"]),
    "two filters swapped": (
        [(KEEPS[0], "#"), (KEEPS[1], KEEPS[0]), ("#", KEEPS[1])],
        ["keep kept 35, computed 3", "keep kept 29"],
    ),
    "a split": (
        [("  - measure\n", "  - measure\n  - trap_split\n")],
        ["download kept 43", "trap_split computed 38", "keep computed 0 or more"],
    ),
    "no dedupe": ([(DEDUPE, "")], ["keep kept 33", "keep kept 12, computed 17"]),
    "dedupe over all": ([(DEDUPE, "  - dedupe: {by: raw_sha256, over: all}\n")], ["keep kept 33"]),
    "dedupe by another column": ([("by: raw_sha256", "by: sha256")], ["dedupe made anew, from all rows"]),
    "another end": ([("samples: 8", "samples: 5")], ["keep kept 12", "dedupe kept"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> Path:
    """A folder with lists and a finished run."""
    home = tmp_path_factory.mktemp("first")
    write_lists(home, "a", "b")
    Change(plan_of(home), str(home / "run"), server).run()
    return home


@pytest.fixture
def home(first: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(first, tmp_path / "home", symlinks=True))


def check_change(home: Path, plan: Plan, server: DemoServer, *lines: str, asks: bool = False) -> Change:
    """Run a changed plan where an old one ran; the result is a fresh run's. Return what was forecast."""
    change, before = Change(plan, str(home / "run"), server), server.num_media_requests
    text = change.look()
    assert set(lines) <= {" ".join(line.split()) for line in text.splitlines()}, text
    result = change.run()
    asked = server.num_media_requests - before
    assert (asked > 0) == asks
    assert asked <= result.computed["download"]  # a row that is held is not fetched again
    fresh = Change(plan, str(home / "fresh"), server).run()
    assert fresh.funnel == result.funnel
    assert corpus_digest(home / "fresh") == corpus_digest(home / "run")
    assert not Change(plan, str(home / "run"), server).run().fresh
    return change


@pytest.mark.parametrize("name", CHANGES)
def test_W22_a_changed_plan_does_what_it_says(name: str, home: Path, server: DemoServer) -> None:
    replace, lines = CHANGES[name]
    asks = name in ("an image size", "a looser rule on texts", "a stage less")
    check_change(home, plan_of(home, *replace), server, *lines, asks=asks)


def test_W22_a_new_version_of_a_stage(home: Path, server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measure, "version", 2)
    lines = ("download kept 43", "measure computed 38", "keep computed 0 to 38")
    check_change(home, plan_of(home), server, *lines)


def test_W22_a_list_more_and_a_list_less(home: Path, server: DemoServer) -> None:
    write_lists(home, "c")
    more = check_change(home, plan_of(home), server, "split_captions kept 41, computed 15", asks=True)
    assert more.forecast.partitions == 4
    (home / "pairs-a.jsonl").unlink()
    shutil.rmtree(home / "fresh")
    check_change(home, plan_of(home), server, "split_captions kept 41", "download kept 43", asks=False)


def test_W22_a_list_by_name_more(tmp_path: Path, server: DemoServer) -> None:
    write_lists(tmp_path, "a", "b")
    catalog = tmp_path / "catalog.yaml"
    both = catalog.read_text(encoding="utf-8").replace('"pairs-*.jsonl"', "pairs-a.jsonl, pairs-b.jsonl")
    catalog.write_text(both.replace(", pairs-b.jsonl", ""), encoding="utf-8")
    Change(plan_of(tmp_path), str(tmp_path / "run"), server).run()
    catalog.write_text(both, encoding="utf-8")
    check_change(tmp_path, plan_of(tmp_path), server, "split_captions kept 26, computed 15", asks=True)


def test_W22_resources_change_nothing_though_they_cut_the_work_elsewhere(home: Path, server: DemoServer) -> None:
    plan = plan_of(home, ("  - measure\n", "  - measure: {resources: {cpus: 2}}\n"))
    assert len(plan.segments) == len(plan_of(home).segments) + 1
    corpus = (home / "run/corpus").readlink()
    check_change(home, plan, server, "measure kept 38", "keep kept 38")
    assert (home / "run/corpus").readlink() == corpus
    quick = plan_of(home, ("  - measure\n", "  - measure: {resources: {call_s: 5}}\n"))
    assert forecast_text(Change(quick, str(home / "run"), server).runner().forecast()).endswith("nothing to do")


def test_W22_dedupe_looks_at_what_this_plan_holds_and_not_at_what_another_left(home: Path, server: DemoServer) -> None:
    over = (DEDUPE, "  - dedupe: {by: raw_sha256, over: all}\n")
    Change(plan_of(home, LOOSE), str(home / "run"), server).run()
    check_change(home, plan_of(home, over, ("min_chars: 6", "min_chars: 30")), server)


@pytest.mark.parametrize(("old", "new", "match"), [
    ("name: changed", "name: other", "belongs to plan `changed` over .* not to `other` over"),
    ("  - catalog: {file: catalog.yaml, entry: documents}\n", "", "over catalog:pairs, catalog:documents, .* catalog:pairs$"),
])  # fmt: skip
def test_W22_another_name_or_source_is_refused_with_the_difference(
    old: str, new: str, match: str, home: Path, server: DemoServer
) -> None:
    before = digests(str(home / "run"))
    with pytest.raises(ConfigError) as caught:
        Runner(plan_of(home, (old, new)), str(home / "run"), server.allow)
    caught.match(f"(?m){match}")
    assert digests(str(home / "run")) == before


def test_W22_a_forecast_makes_no_folder(tmp_path: Path, server: DemoServer) -> None:
    write_lists(tmp_path, "a")
    assert not Change(plan_of(tmp_path), str(tmp_path / "run"), server).runner().forecast().done
    assert not (tmp_path / "run").exists()


def test_W22_more_new_partitions_than_a_dry_run_reads_are_a_number_or_more(tmp_path: Path) -> None:
    source = add_pictures(tmp_path / "p", *["a red bar"] * (READ_AHEAD + 6)).model_copy(update={"partition_rows": 1})
    plan = Plan(name="many", source=(source,), stages=(Measure(),), sink=Shards())
    text = Change(plan, str(tmp_path / "run")).look()
    assert text.splitlines()[:2] == ["generation 1: 70 partitions", "  measure          computed 64 or more"]


def interrupt(change: Change, random_: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin the run and break it off at some commit step, if it passes so many."""
    monkeypatch.setenv("FAILPOINT", f"any:{random_.randrange(1, 700)}:raise")
    failpoint.reset()
    with suppress(OSError, RunError):
        change.runner().execute(Stopping(), quiet=True)
    monkeypatch.delenv("FAILPOINT")
    for path in Path(change.url).rglob(".tmp-*"):  # this process is alive, so nobody else may
        path.unlink()


TEXTS = ["red", "a red bar", "a red bar on white", "x", "one two three four", "red bar", "red again"]


def some_stages(random_: random.Random) -> tuple[Stage, ...]:
    """Return a plan's stages: any of some, in any order, and a dedupe or two anywhere among them."""
    near: list[Stage] = [
        TextRules(min_chars=random_.choice([1, 2, 4, 8])),
        TextRules(min_words=random_.choice([1, 2]), tag=random_.random() < 0.3),
        TrapFilter(),
        Trap(),
        TrapSplit(),
    ]
    near = [stage for place, stage in enumerate(near) if stage not in near[:place]]  # the same twice is refused
    stages: list[Stage] = random_.sample(near, random_.randrange(1, 4))
    far = [Keep(column="height", at_least=random_.choice([1, 24])), Keep(column="bytes", at_most=random_.choice([120, 9_000]))]
    stages += [Measure(resources=Resources(cpus=random_.choice([1, 1, 2]))), *random_.sample(far, random_.randrange(3))]
    ways = [("text", "all"), ("text", "kept"), ("sample_id", "all"), ("sample_id", "kept")]
    for by, over in random_.sample(ways, random_.randrange(3)):
        stages.insert(random_.randrange(len(stages) + 1), Dedupe(by=by, over=over))
    return tuple(stages)


def add_pictures(folder: Path, *texts: str) -> Folder:
    """Add pictures with their texts to a folder; those that are there stay as they are."""
    folder.mkdir(exist_ok=True)
    first = len(list(folder.glob("*.png")))
    for number, text in enumerate(texts, start=first):
        (folder / f"{number:03d}.png").write_bytes(encode(draw("red", "bar")[: 32 if number % 3 else 16]))
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return Folder(path=str(folder), partition_rows=5)


# A tar whose writing was broken off is left to the end of its process, and this one goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", seeds(3, 40))
def test_W22_any_row_of_changes_and_interruptions(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(seed)
    source = add_pictures(tmp_path / "p", *random_.choices(TEXTS, k=12))
    for number in range(5):
        if random_.random() < 0.4:
            add_pictures(tmp_path / "p", random_.choice(TEXTS))  # the last partition is another one then
        plan = Plan(name="any", source=(source,), stages=some_stages(random_), sink=Shards(samples=5))
        change = Change(plan, str(tmp_path / "run"))
        if random_.random() < 0.5:
            interrupt(change, random_, monkeypatch)
        result = change.run()
        fresh = Change(plan, str(tmp_path / f"fresh-{number}")).run()
        assert result.funnel == fresh.funnel
        assert corpus_digest(tmp_path / "run") == corpus_digest(tmp_path / f"fresh-{number}")
        if random_.random() < 0.2:
            collect(change.url)
