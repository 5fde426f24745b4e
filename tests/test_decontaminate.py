"""Rows that an eval set or an earlier corpus holds: edited copies are found with their evidence, clean rows stay."""

import hashlib
import io
import json
import re
import shlex
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from mmdata.cli.main import app
from mmdata.config import parse_yaml
from mmdata.engine import Runner, RunResult
from mmdata.engine.task import Executor
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan, parse_plan
from mmdata.report.build_reference import EvalSet, build_reference
from mmdata.report.duplicates import duplicate_groups, groups_text, write_groups
from mmdata.report.explain import explain
from mmdata.schema import PARTITION, ROW
from mmdata.shards.reference import ColumnFacts, Items, Reference, ReferenceFacts, open_reference
from mmdata.shards.reference_files import Names, finish_reference, take_out, write_part
from mmdata.stages import against
from mmdata.stages.against import Against
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.comparing import Comparing, PastHashes, PastTexts, PastVectors
from mmdata.stages.comparisons import Equal
from mmdata.stages.decontaminate import Decontaminate
from mmdata.stages.fingerprint import Fingerprint
from mmdata.stages.measure import Measure
from mmdata.stages.passes import Share
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Stage
from mmdata.storage import open_store

IMAGES = sorted((Path(__file__).parent.parent / "mmdata/demo/data/images").glob("*.jpg"))
LOOK = PastHashes(column="pdq", radius=40)


def save(image: Image.Image, path: Path, text: str | None, quality: int = 90) -> None:
    image.convert("RGB").save(path, quality=quality)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def whole(path: Path) -> bool:
    """Say whether a picture of the demo is one of those that are not broken."""
    try:
        with Image.open(path) as image:
            image.load()
            return bool(min(image.size) >= 64)
    except OSError:
        return False


def smaller(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((image.width // 2, image.height // 2))


def written_on(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    ImageDraw.Draw(image).text((4, 4), "stolen", fill=(255, 0, 0))
    return image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`eval/`, eight pictures with captions; `crawl/`, edited copies of six of them among eight others."""
    home = tmp_path_factory.mktemp("home")
    pictures = [path for path in IMAGES[:120:5] if whole(path)]
    evals, clean = pictures[:8], pictures[8:16]
    (home / "eval").mkdir()
    (home / "crawl").mkdir()
    for number, path in enumerate(evals):
        shutil.copy(path, home / f"eval/e{number}.jpg")
        (home / f"eval/e{number}.txt").write_text(f"the answer to question number {number} of the test", encoding="utf-8")
    for number, path in enumerate(clean):
        shutil.copy(path, home / f"crawl/clean{number}.jpg")
        (home / f"crawl/clean{number}.txt").write_text(f"clean picture {number}", encoding="utf-8")
    shutil.copy(evals[0], home / "crawl/same0.jpg")
    edits: list[Callable[[Image.Image], Image.Image]] = [
        smaller,
        written_on,
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ]
    for number, edit in enumerate(edits, 1):
        save(edit(Image.open(evals[number])), home / f"crawl/edit{number}.jpg", f"copy {number}", 60)
    (home / "crawl/clean7.txt").write_text("The  answer to QUESTION number 7 of the test", encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def reference(home: Path) -> Reference:
    """The eval set's reference, from its folder."""
    columns = ("pdq", "pdq_views", "phash", "pixels", "sha256", "folded(text)")
    return build_reference(EvalSet(str(home / "eval"), "quiz"), str(home / "quiz"), columns, InlineExecutor(), quiet=True)


@pytest.fixture(scope="module")
def embedded(home: Path) -> Reference:
    """The embeddings of the eval set's pictures by the small CLIP."""
    given = EvalSet(str(home / "eval"), "seen")
    return build_reference(given, str(home / "seen"), ("clip_score_image_embedding",), InlineExecutor(), quiet=True)


def run(
    folder: Path, source: Path, executor: Executor, *stages: Stage, reference: tuple[str, ...] = (), rows: int = 4
) -> tuple[Runner, RunResult]:
    embedded = any(isinstance(stage, Comparing) and stage.semantic is not None for stage in stages)
    clip = (ClipScore(embeddings=("image",)),) if embedded else ()
    seen = (Measure(), Fingerprint(kinds=("phash", "pdq", "pixels")), *clip)
    sink = Shards(samples=4, reference=reference)
    runner = Runner(
        Plan(name="crawl", source=(Folder(path=str(source), partition_rows=rows),), stages=(*seen, *stages), sink=sink),
        str(folder),
    )
    return runner, runner.execute(executor, quiet=True)


def gone(folder: Path, source: Path) -> dict[str, tuple[str, float | None]]:
    """Return what was dropped for another row: the picture's name, with reason and distance."""
    groups = duplicate_groups(str(folder), 100)
    names = {Folder(path=str(source))._row(path.name)["sample_id"]: path.stem for path in source.glob("*.jpg")}
    return {names[copy.row.name[0]]: (copy.reason, copy.value) for group in groups for copy in group.copies}


def test_edited_copies_are_dropped_and_clean_rows_stay(home: Path, reference: Reference, tmp_path: Path) -> None:
    stage = Decontaminate(references=(str(home / "quiz"),), by=("pixels", "folded(text)"), likeness=LOOK)
    runner, result = run(tmp_path / "a", home / "crawl", InlineExecutor(), stage)
    assert result.funnel["dropped"] == {"in_eval": 2, "near_eval_hash": 3}
    assert result.funnel["kept"] == 7
    found = gone(tmp_path / "a", home / "crawl")
    assert set(found) == {"same0", "clean7", "edit1", "edit2", "edit3"}  # the mirrored one by the eval set's own views
    assert found["same0"] == found["clean7"] == ("in_eval", 0)
    assert all(0 < (found[name][1] or 0) <= 40 for name in ("edit1", "edit2", "edit3"))
    # The verdict names the item of the eval set.
    same = next(group for group in duplicate_groups(str(tmp_path / "a"), 100) if group.copies[0].value == 0)
    assert same.keeper.name[0] in {name for name, _ in reference.names(0, range(8))}  # type: ignore[arg-type]
    text = groups_text(duplicate_groups(str(tmp_path / "a"), 100), 3)
    assert "in_eval by decontaminate pixels, folded(text), pdq within 40" in text
    assert "of reference quiz stays for 1" in text
    assert runner.plan.steps[-1].stage.inputs() == (reference.digest,)


def test_tags_keep_the_evidence(home: Path, reference: Reference, tmp_path: Path) -> None:
    stage = Decontaminate(references=(str(home / "quiz"),), likeness=LOOK, named="clean", tag=True)
    _, result = run(tmp_path, home / "crawl", InlineExecutor(), stage)
    assert result.funnel["kept"] == 12
    assert result.corpus is not None
    facts = []
    for path in sorted(Path(result.corpus).glob("*.tar")):
        with tarfile.open(path) as tar:
            facts += [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]  # type: ignore[arg-type]
    flagged = [fact for fact in facts if not fact["clean"]]
    assert len(flagged) == 4
    ids = {name for name, _ in reference.names(0, np.arange(8))}
    assert all(fact["clean_reason"] == "near_eval_hash" and fact["clean_keeper_id"] in ids for fact in flagged)
    assert sorted(fact["clean_value"] for fact in flagged)[0] == 0
    assert all(fact["clean_reason"] is None and fact["clean_value"] is None for fact in facts if fact["clean"])


def test_a_run_is_judged_against_two_earlier_corpora(home: Path, reference: Reference, tmp_path: Path) -> None:
    past = tmp_path / "past"
    past.mkdir()
    for name in ("clean0", "clean1", "edit1"):
        save(smaller(Image.open(home / f"crawl/{name}.jpg")), past / f"{name}.jpg", "old")
    _, first = run(tmp_path / "run1", past, InlineExecutor(), reference=("pdq", "pixels"))
    assert first.corpus is not None
    stage = Against(references=(first.corpus, str(home / "quiz")), by=("pixels",), likeness=LOOK)
    run(tmp_path / "a", home / "crawl", InlineExecutor(), stage)
    run(tmp_path / "b", home / "crawl", InlineExecutor(), stage, rows=100)
    found = gone(tmp_path / "a", home / "crawl")
    assert found == gone(tmp_path / "b", home / "crawl")  # in four shares of the past, or in one
    assert {"clean0", "clean1", "edit1", "edit2", "edit3", "same0"} == set(found)
    assert found["same0"] == ("in_past", 0)
    assert found["clean0"][0] == "near_past_hash"
    groups = duplicate_groups(str(tmp_path / "a"), 100)
    names = set(open_reference(first.corpus).names(0, np.arange(3)))
    assert len(names & {group.keeper.name for group in groups}) >= 2
    text = groups_text(groups, 3)
    assert "of reference crawl stays for 1" in text
    assert "of reference quiz stays for 1" in text
    # Asked row by row, the same references say the same.
    same = Decontaminate(references=stage.references, by=("pixels",), likeness=LOOK)
    run(tmp_path / "c", home / "crawl", InlineExecutor(), same)
    assert {
        name: (why.replace("eval", "past"), value) for name, (why, value) in gone(tmp_path / "c", home / "crawl").items()
    } == found
    write_groups(tmp_path / "page.html", str(tmp_path / "a"), groups)
    assert "copy of" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_texts_are_compared_by_their_runs_of_words(home: Path, tmp_path: Path) -> None:
    question = "which of these four birds can swim under water for more than twenty minutes at a time"
    other = "a map of all rivers in the north with the names of towns"
    pq.write_table(pa.table({"question": [other, question, "two words"]}), tmp_path / "set.parquet")
    build_reference(EvalSet(str(tmp_path / "set.parquet"), "exam"), str(tmp_path / "exam"), ("runs8(text)",), InlineExecutor())
    texts = {
        "clean0": question.upper() + " ?", "clean1": f"{question} and why is that so",  # 10 of 10 runs, 10 of 15
        "clean2": f"see {other}", "clean3": "two words", "clean4": "which of these four birds can swim",  # 6 of 7; too few words
    }  # fmt: skip
    source = tmp_path / "source"
    source.mkdir()
    for name, text in texts.items():
        shutil.copy(home / f"crawl/{name}.jpg", source)
        (source / f"{name}.txt").write_text(text, encoding="utf-8")
    ways = {"references": (str(tmp_path / "exam"),), "texts": PastTexts(share=0.8)}
    run(tmp_path / "a", source, InlineExecutor(), Decontaminate(**ways))
    found = gone(tmp_path / "a", source)
    assert found == {"clean0": ("near_eval_text", 0), "clean2": ("near_eval_text", float(np.float32(1 / 7)))}
    run(tmp_path / "b", source, InlineExecutor(), Against(**ways))
    assert gone(tmp_path / "b", source) == {name: (why.replace("eval", "past"), value) for name, (why, value) in found.items()}
    ways["texts"] = PastTexts(share=2 / 3)
    run(tmp_path / "c", source, InlineExecutor(), Against(**ways))
    assert gone(tmp_path / "c", source)["clean1"] == ("near_past_text", float(np.float32(1 / 3)))


def test_the_past_is_not_loaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two million planted hashes in two parts, 32 MB with their ids: 4 MB of them are held at a time."""
    monkeypatch.setattr(against, "CHUNK", 1 << 16)
    rng, store = np.random.default_rng(1), open_store(str(tmp_path))
    digests: dict[str, str] = {}
    for part in range(2):
        hashes = rng.integers(0, 1 << 64, 1_000_000, np.uint64, endpoint=False)
        ids = np.zeros((len(hashes), 16), np.uint8)
        ids[:, :8] = np.arange(len(hashes), dtype=">u8").view(np.uint8).reshape(-1, 8)
        ids[:, 15] = part
        hashes[123_456] = np.uint64(part)
        columns = {"phash": Items(hashes.reshape(-1, 1), np.arange(len(hashes)))}
        digests |= write_part(store, ".", part, Names(ids, np.zeros(len(ids), np.int32)), columns)
    facts = ReferenceFacts(name="large", rows=0, licences={}, columns={"phash": ColumnFacts(kind="hash", width=1)}, parts=[])
    finish_reference(store, ".", facts, digests)
    stage = Against(references=(str(tmp_path),), likeness=PastHashes(radius=3))
    first, *shares = [one.work for one in stage.passes() if isinstance(one, Share)]
    new = rng.integers(0, 1 << 64, 1000, np.uint64, endpoint=False)
    new[7], new[9] = 0b111, 1
    rows = pa.table({PARTITION: np.zeros(1000, np.int64), ROW: np.arange(1000), "_by0": new})
    stage.opened()
    tracemalloc.start()
    found = [first(rows, None, part, 2) for part in range(2)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    said = shares[0](rows, pa.concat_tables(found), 0, 1)
    keeper = f"{123_456:016x}{0:016x}"
    assert [(row[ROW], row["keeper_id"], row["value"]) for row in said.to_pylist()] == [
        (7, keeper[:-1] + "1", 2),
        (9, keeper[:-1] + "1", 0),
    ]


def test_what_was_taken_out_of_the_past_is_found_no_more(home: Path, reference: Reference, tmp_path: Path) -> None:
    shutil.copytree(home / "quiz", tmp_path / "quiz", ignore=shutil.ignore_patterns("_mmdata"))
    stage = Against(references=(str(tmp_path / "quiz"),), by=("pixels",))
    runner, result = run(tmp_path / "a", home / "crawl", InlineExecutor(), stage)
    assert result.funnel["dropped"] == {"in_past": 1}
    keeper = duplicate_groups(str(tmp_path / "a"), 1)[0].keeper.name[0]
    row = duplicate_groups(str(tmp_path / "a"), 1)[0].copies[0].row.name[0]
    assert f"in_past by against, value 0.0000, in favour of {keeper}:0" in explain(str(tmp_path / "a"), row)
    before = runner.plan.steps[-1].stage.inputs()
    assert take_out(str(tmp_path / "quiz"), [keeper]) == 1
    runner, result = run(tmp_path / "a", home / "crawl", InlineExecutor(), stage)
    assert runner.plan.steps[-1].stage.inputs() != before  # so the verdicts are made anew
    assert result.funnel["dropped"] == {}


def test_raw_bytes_are_looked_for_among_an_eval_sets_files(home: Path, reference: Reference) -> None:
    column = Equal("raw_sha256").column(reference)
    assert column == "sha256"
    digests = [hashlib.sha256((home / f"eval/e{number}.jpg").read_bytes()).digest()[:16] for number in range(8)]
    assert reference.items(0, column).values.astype(">u8").tobytes() == b"".join(digests)


def parquet_of(home: Path, path: Path) -> None:
    pictures = sorted((home / "eval").glob("*.jpg"))
    rows = [
        {"image": {"bytes": item.read_bytes(), "path": item.name}, "caption": item.with_suffix(".txt").read_text("utf-8")}
        for item in pictures
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def tar_of(home: Path, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for item in sorted((home / "eval").iterdir()):
            info = tarfile.TarInfo(item.name)
            info.size = item.stat().st_size
            tar.addfile(info, io.BytesIO(item.read_bytes()))


@pytest.mark.parametrize(("name", "write"), [("quiz.parquet", parquet_of), ("quiz.tar", tar_of)])
def test_an_eval_set_may_be_parquet_or_webdataset(
    home: Path, reference: Reference, tmp_path: Path, name: str, write: Callable[[Path, Path], None]
) -> None:
    write(home, tmp_path / name)
    command = [
        "reference",
        str(tmp_path / name),
        str(tmp_path / "out"),
        "--columns",
        "pdq,pixels,folded(text)",
        "--executor",
        "inline",
    ]
    told = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "8 rows of quiz: pdq, pixels, folded(text)" in told.output
    made = open_reference(str(tmp_path / "out"))
    for column in ("pdq", "pixels", "folded(text)"):
        assert (made.items(0, column).values == reference.items(0, column).values).all()
    told = CliRunner().invoke(app, command, catch_exceptions=False)  # again: nothing is done twice
    assert told.exit_code == 0


def test_an_eval_set_may_be_captions_and_embeddings_alone(home: Path, embedded: Reference, tmp_path: Path) -> None:
    vectors = embedded.items(0, "clip_score_image_embedding").values
    texts = [f"the answer to question number {number} of the test" for number in range(8)]
    table = pa.table({"question": texts, "clip_score_image_embedding": [*vectors.astype(np.float32).tolist()]})
    pq.write_table(table, tmp_path / "set.parquet")
    given = EvalSet(str(tmp_path / "set.parquet"), "alone")
    columns = ("folded(text)", "clip_score_image_embedding")
    build_reference(given, str(tmp_path / "out"), columns, InlineExecutor())
    stage = Decontaminate(
        references=(str(tmp_path / "out"),), by=("folded(text)",),
        semantic=PastVectors(column="clip_score_image_embedding", cosine=0.95),
    )  # fmt: skip
    run(tmp_path / "run", home / "crawl", InlineExecutor(), stage)
    found = gone(tmp_path / "run", home / "crawl")
    assert found["clean7"] == ("in_eval", 0)
    assert found["same0"][0] == found["edit2"][0] == found["edit3"][0] == "near_eval_embedding"
    assert {name for name in found if name.startswith("clean")} == {"clean7"}
    with pytest.raises(ConfigError, match=r"has no column `phash`[\s\S]*hint: it has question, clip_score"):
        build_reference(given, str(tmp_path / "other"), ("phash",), InlineExecutor())
    made = open_reference(str(tmp_path / "out"))
    take_out(str(tmp_path / "out"), [made.names(0, np.array([0]))[0][0]])
    with pytest.raises(ConfigError, match=r"samples were taken out of this reference\s+hint: delete the folder"):
        build_reference(given, str(tmp_path / "out"), columns, InlineExecutor())
    assert open_reference(str(tmp_path / "out")).facts.rows == 7


def test_vectors_may_be_missing_at_the_start_of_an_eval_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdata.report.build_reference._ROWS", 4)
    vectors: list[list[float] | None] = [None] * 5 + [[0.6, 0.8]] * 3
    pq.write_table(pa.table({"e": vectors}), tmp_path / "set.parquet")
    reference = build_reference(EvalSet(str(tmp_path / "set.parquet"), "few"), str(tmp_path / "out"), ("e",), InlineExecutor())
    assert [len(reference.items(part, "e").owner_M) for part in range(2)] == [0, 3]
    pq.write_table(pa.table({"e": pa.array([None] * 3, pa.list_(pa.float32()))}), tmp_path / "set.parquet")
    with pytest.raises(ConfigError, match=r"set\.parquet: column `e` holds no vector"):
        build_reference(EvalSet(str(tmp_path / "set.parquet"), "none"), str(tmp_path / "none"), ("e",), InlineExecutor())


def test_what_cannot_be_compared_is_refused_before_the_run(
    home: Path, reference: Reference, embedded: Reference, tmp_path: Path
) -> None:
    quiz = (str(home / "quiz"),)

    def refused(*stages: Stage) -> None:
        run(tmp_path, home / "crawl", InlineExecutor(), *stages)

    with pytest.raises(ConfigError, match=r"reference `quiz` .* has no `url`[\s\S]*hint: it has pdq"):
        refused(Decontaminate(references=quiz, by=("url",)))
    with pytest.raises(ConfigError, match=r"of the 8 rows of reference `quiz`, 2\.8 are within 30 of 64 bits of a row by chance"):
        refused(Against(references=quiz, likeness=PastHashes(column="phash", radius=30)))
    with pytest.raises(ConfigError, match=r"`likeness` compares hashes, but `pixels` is a digest"):
        refused(Against(references=quiz, likeness=PastHashes(column="pixels")))
    with pytest.raises(ConfigError, match=r"no reference: it has no reference\.json"):
        refused(Against(references=(str(tmp_path),), by=("pixels",)))
    with pytest.raises(ValueError, match="give at least one way to compare"):
        Against(references=quiz)
    other = Plan(
        name="crawl", source=(Folder(path=str(home / "crawl")),),
        stages=(ClipScore.model_validate({"scorer": {"fake": True}, "embeddings": ["image"], "column": "clip_score"}),),
    )  # fmt: skip
    stage = Against(references=(str(home / "seen"),), semantic=PastVectors(column="clip_score_image_embedding"))
    with pytest.raises(
        ConfigError, match=r"made by a hash \(fake\), that of reference `seen` by mmdata-tiny[\s\S]*hint: embeddings of two"
    ):
        stage.check_makers(other.makers)


def test_the_pages_plans_work(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs/decontamination.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (command,) = re.findall(r"```\nmmdata (.*?)\n```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "eval", "evals/quiz")
    shutil.copytree(home / "crawl", "crawl")
    told = CliRunner().invoke(app, [*shlex.split(command), "--executor", "inline"], catch_exceptions=False)
    assert "8 rows of quiz: pdq, pdq_views, pixels, folded(text), runs8(text)" in told.output
    result = Runner(parse_plan(parse_yaml(first, "first.yaml")), "first").execute(InlineExecutor(), quiet=True)
    assert result.funnel["dropped"] == {"in_eval": 2, "near_eval_hash": 3}
    result = Runner(parse_plan(parse_yaml(second, "second.yaml")), "second").execute(InlineExecutor(), quiet=True)
    assert result.funnel["dropped"] == {"in_past": 7}
