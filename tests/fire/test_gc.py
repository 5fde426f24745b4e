"""`mmdata gc`: what nothing refers to goes, what is kept works, and a collection that is killed does no harm."""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from mmdata import failpoint
from mmdata.cli.main import app
from mmdata.demo import DemoServer
from mmdata.engine import Executor, Runner, RunResult, RunStore
from mmdata.engine.gc import collect
from mmdata.engine.keys import plan_keys
from mmdata.engine.lease import Lease
from mmdata.errors import BusyError, ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Budget, Plan
from mmdata.report.explain import explain
from mmdata.report.fates import fates
from mmdata.report.table import forecast_text
from mmdata.shards import verify
from mmdata.stages.measure import Measure
from mmdata.stages.text_rules import TextRules
from tests.fire.changes import Change, Dying, GivingUp, Stopping, digests, plan_of, write_lists
from tests.fire.plans import pictures, run_plan, trap_plan
from tests.fire.seeds import seeds
from tests.flow.small import corpus_digest

SMALL = ("image_size: 48", "image_size: 40")
STRICT = ("min_chars: 6", "min_chars: 12")
TALL = ("aspect, at_most: 1.6", "aspect, at_most: 3.0")


def run(plan: Plan, folder: Path | str, server: DemoServer, executor: Executor | None = None) -> RunResult:
    return Runner(plan, str(folder), server.allow).execute(executor or InlineExecutor(), quiet=True)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> Path:
    """A folder with lists and a run of four generations: of the first three, two are of one size, the stricter one first."""
    home = tmp_path_factory.mktemp("grown")
    write_lists(home, "a", "b")
    for replace in ([SMALL, STRICT], [SMALL], [], [TALL]):
        run(plan_of(home, *replace), home / "run", server)
    run(plan_of(home, TALL), home / "fresh", server)
    return home


@pytest.fixture
def home(grown: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(grown, tmp_path / "home", symlinks=True))


def kinds(folder: Path) -> list[str]:
    """Return the names of all files of a run folder but of what varies.

    Rows that were added to a column, and payloads of a later attempt, go by the name that all in one go would have had;
    keys of what read them are left out.
    """
    names = (name for name in digests(str(folder)) if not name.startswith(("generations/", "manifest/")))
    found = {re.sub(r"(/download)(\.\d+)?(\.a\d+)?/|\.\d+(\.parquet)$", r"\1/\4", name) for name in names}
    return sorted(re.sub(r"^(tasks|passes|corpora)/\w{24}(\.\w{16})?", r"\1/", name) for name in found)


def check_whole(plan: Plan, folder: Path, server: DemoServer) -> None:
    """Assert that a plan's run is all there and can be read in every way, and that nobody is asked."""
    asked = server.requests.total()
    assert not run(plan, folder, server).fresh
    assert server.requests.total() == asked
    assert verify(str(folder / "corpus")).whole
    store = RunStore(str(folder))
    table = fates(store, ["sample_id", "url", "width", "raw_sha256"])
    kept = next(row for row in table.to_pylist() if row["reason"] is None)
    assert "kept" in explain(str(folder), kept["sample_id"])
    again = collect(str(folder))
    assert (again.objects, again.bytes, again.gone) == ([], 0, [])


def test_the_newest_generation_is_kept_and_nothing_else(home: Path, server: DemoServer) -> None:
    before, corpus = digests(str(home / "run")), corpus_digest(home / "run")
    stamps = {path: path.lstat().st_mtime_ns for path in (home / "run").rglob("*")}
    said = collect(str(home / "run"), dry_run=True)
    assert stamps == {path: path.lstat().st_mtime_ns for path in (home / "run").rglob("*")}
    freed = collect(str(home / "run"))
    assert freed == said
    assert (freed.kept, freed.gone) == ([4], [1, 2, 3])
    after = digests(str(home / "run"))
    lost = set(before) - set(after)
    assert lost == {name for name in freed.objects if not name.startswith("facts/")}
    assert {name: before[name] for name in after if name in before} == {name: after[name] for name in after if name in before}
    assert kinds(home / "run") == kinds(home / "fresh")
    assert not [path for path in (home / "run").rglob("*") if path.is_dir() and not list(path.iterdir())]
    assert corpus_digest(home / "run") == corpus
    check_whole(plan_of(home, TALL), home / "run", server)


def test_rows_that_were_added_to_a_column_are_kept_with_it(tmp_path: Path, server: DemoServer) -> None:
    write_lists(tmp_path, "a", "b")
    for replace in ([STRICT], [SMALL], []):
        run(plan_of(tmp_path, *replace), tmp_path / "run", server)
    collect(str(tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run/payload").rglob("download*")} == {"download", "download.1"}
    run(plan_of(tmp_path), tmp_path / "fresh", server)
    assert kinds(tmp_path / "run") == kinds(tmp_path / "fresh")
    assert corpus_digest(tmp_path / "run") == corpus_digest(tmp_path / "fresh")
    check_whole(plan_of(tmp_path), tmp_path / "run", server)


def test_what_killed_attempts_left_goes(tmp_path: Path, server: DemoServer) -> None:
    write_lists(tmp_path, "a", "b")
    plan, folder = plan_of(tmp_path), tmp_path / "run"
    store, keys = RunStore(str(folder)).store, plan_keys(plan)
    store.create(f"payload/{keys[2]}/download/00000.tar", b"other responses")
    store.create(f"payload/{keys[2]}/download/00002_stats.json", b"other responses")
    run(plan, folder, server)
    record = store.list("tasks")[0].partition(".")[0]
    left = [f"tasks/{record}.0123456789abcdef.parquet", f"poison/{keys[3]}/nobody/3.json", f"columns/{keys[3]}/nobody.0.parquet"]
    for name in left:
        store.create(name, b"{}")
    (folder / "columns/.tmp-000000-1-1-00").touch()
    freed = collect(str(folder))
    left += [f"payload/{keys[2]}/download/{name}" for name in ("00000.tar", "00002.tar", "00002.parquet", "00002_stats.json")]
    assert sorted(freed.objects) == sorted(left)
    assert not list(folder.rglob(".tmp-*"))
    run(plan, tmp_path / "fresh", server)
    assert kinds(folder) == kinds(tmp_path / "fresh")
    check_whole(plan, folder, server)


def test_a_partition_of_which_every_row_failed_keeps_its_shard(tmp_path: Path, server: DemoServer) -> None:
    write_lists(tmp_path, "a")
    lost = "".join(
        f'{{"url": "http://host-01.demo.localhost/images/no-{n}.png", "text": "not there", "also": null}}\n' for n in range(3)
    )
    (tmp_path / "pairs-z.jsonl").write_text(lost, encoding="utf-8")
    run(plan_of(tmp_path), tmp_path / "run", server)
    before = digests(str(tmp_path / "run"))
    assert collect(str(tmp_path / "run")).objects == []
    assert digests(str(tmp_path / "run")) == before


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_a_collection_that_is_killed_leaves_a_sound_folder(
    seed: int, home: Path, server: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = home / "run", plan_of(home, SMALL)
    random = Random(seed)
    Dying.left = random.randrange(len(collect(str(folder), dry_run=True).objects))
    with monkeypatch.context() as patch:
        patch.setattr("mmdata.engine.runstore.open_store", Dying)
        with pytest.raises(KeyboardInterrupt):
            collect(str(folder))
    if seed % 2:  # the plan that went, at once: what is left of it is used or left alone
        assert Change(plan, str(folder), server).run().generation == 5
        run(plan, home / "again", server)
        assert corpus_digest(folder) == corpus_digest(home / "again")
        assert run(plan_of(home, TALL), folder, server).generation == 4
        assert run(plan, folder, server).generation == 5  # asked for last, so this is what is kept
        collect(str(folder))
        assert kinds(folder) == kinds(home / "again")
        check_whole(plan, folder, server)
    else:
        assert collect(str(folder)).objects
        assert kinds(folder) == kinds(home / "fresh")
        check_whole(plan_of(home, TALL), folder, server)


def test_a_generation_that_went_is_made_anew(home: Path, server: DemoServer) -> None:
    collect(str(home / "run"))
    change = Change(plan_of(home, SMALL), str(home / "run"), server)
    result = change.run()
    assert (result.generation, result.computed["download"], result.computed["split_captions"]) == (5, 43, 0)


def test_who_goes_back_to_an_earlier_plan_keeps_what_he_asked_for_last(home: Path, server: DemoServer) -> None:
    folder = home / "run"
    assert run(plan_of(home), folder, server).generation == 3  # the link is its own now, though newer is the fourth
    runner = CliRunner()
    said = runner.invoke(app, ["gc", str(folder), "--keep", "2", "--dry-run"]).stdout
    assert re.fullmatch(r"would free \d+ objects, 0\.\d MB; generations kept: 3, 4; gone: 1, 2\n", said)
    assert runner.invoke(app, ["gc", str(folder), "--keep", "2"]).stdout == said.replace("would free", "freed")
    assert not run(plan_of(home), folder, server).fresh
    collect(str(folder))
    manifest = RunStore(str(folder)).manifest(3)
    assert (folder / "corpus").readlink() == Path(manifest["corpus"])
    assert RunStore(str(folder)).read_json("funnel.json") == manifest["funnel"]
    check_whole(plan_of(home), folder, server)
    nothing = runner.invoke(app, ["gc", str(folder)]).stdout
    assert nothing == "freed 0 objects, 0.0 MB; generations kept: 3; gone: none\n"


def test_a_run_at_work_is_left_alone(home: Path) -> None:
    run_store = RunStore(str(home / "run"))
    before = digests(str(home / "run"))
    with Lease(run_store.store), pytest.raises(BusyError, match="another run is at work"):
        collect(str(home / "run"))
    assert digests(str(home / "run")) == before


def test_only_run_folders_are_collected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        collect(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("point", ["before-columns:2", "before-record:5", "before-pass:4", "before-unit:1", "before-corpus:1"])
def test_what_is_not_finished_yet_goes_on(point: str, home: Path, server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plan = home / "run", plan_of(home, ("at_least: 1400", "at_least: 100"))
    monkeypatch.setenv("FAILPOINT", f"{point}:raise")
    failpoint.reset()
    with suppress(OSError, RunError):
        run(plan, folder, server, Stopping())
    monkeypatch.delenv("FAILPOINT")
    before = forecast_text(Runner(plan, str(folder), server.allow).forecast())
    freed = collect(str(folder))
    assert (freed.kept, freed.gone) == ([4, 5], [1, 2, 3])
    assert forecast_text(Runner(plan, str(folder), server.allow).forecast()) == before
    Change(plan, str(folder), server).run()
    run(plan, home / "whole", server)
    assert corpus_digest(folder) == corpus_digest(home / "whole")


def test_a_stage_of_another_version_since_frees_nothing(home: Path, server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(str(home / "run"))
    before = digests(str(home / "run"))
    monkeypatch.setattr(Measure, "version", 2)
    assert collect(str(home / "run")).objects == []
    assert digests(str(home / "run")) == before
    assert fates(RunStore(str(home / "run")), ["width"]).num_rows
    monkeypatch.undo()
    check_whole(plan_of(home, TALL), home / "run", server)


def test_a_generation_without_a_partition_is_kept_whole(tmp_path: Path, server: DemoServer) -> None:
    write_lists(tmp_path, "a", "b")
    plan = plan_of(tmp_path)
    result = Runner(plan, str(tmp_path / "run"), server.allow, budget=Budget(failed_partitions=1)).execute(GivingUp(), quiet=True)
    assert list(result.failed) == [1]
    freed = collect(str(tmp_path / "run")).objects
    assert freed == []  # what is there of the partition that is out serves the next call
    assert fates(RunStore(str(tmp_path / "run")), ["width"]).num_rows
    assert verify(str(tmp_path / "run/corpus")).whole
    assert Change(plan, str(tmp_path / "run"), server).run().generation == 2  # tries it anew
    collect(str(tmp_path / "run"))
    run(plan, tmp_path / "fresh", server)
    assert kinds(tmp_path / "run") == kinds(tmp_path / "fresh")
    check_whole(plan, tmp_path / "run", server)


@pytest.mark.fault("T15")
def test_an_empty_source_has_a_forecast_and_is_collected(tmp_path: Path, server: DemoServer) -> None:
    write_lists(tmp_path, "a")
    (tmp_path / "pairs-a.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "documents.jsonl").write_text("", encoding="utf-8")
    for replace in ([], [SMALL]):
        change = Change(plan_of(tmp_path, *replace), str(tmp_path / "run"), server)
        assert change.look().splitlines()[1] == "  split_captions   kept 0"
        assert change.run().funnel["rows_in"] == 0
    freed = collect(str(tmp_path / "run"))
    assert (freed.kept, freed.gone) == ([2], [1])
    assert not run(plan_of(tmp_path, SMALL), tmp_path / "run", server).fresh


def test_a_newest_generation_without_a_corpus_leaves_the_newest_that_there_is(home: Path, server: DemoServer) -> None:
    run(plan_of(home).until("measure"), home / "run", server)
    assert collect(str(home / "run")).kept == [4, 5]
    assert verify(str(home / "run/corpus")).whole
    (corpus,) = (home / "run/corpora").iterdir()
    assert (home / "run/corpus").resolve() == corpus


def test_on_an_object_store(tmp_path: Path, s3_url: str) -> None:
    source = pictures(tmp_path / "p", ["red", "a red bar", "a red bar on white"])
    plans = [trap_plan(source, TextRules(min_chars=num)) for num in (2, 5)]
    for plan in plans:
        run_plan(plan, s3_url, InlineExecutor())
    said = collect(s3_url, dry_run=True)
    assert collect(s3_url) == said
    assert (said.kept, said.gone) == ([2], [1])
    assert not run_plan(plans[1], s3_url, InlineExecutor()).fresh
    assert verify(f"{s3_url}/{RunStore(s3_url).manifest(2)['corpus']}").whole
    assert collect(s3_url).objects == []
    assert run_plan(plans[0], s3_url, InlineExecutor()).generation == 3
