"""DataComp's baselines, from a small pool of parquet and npz files to `subset.npy`.

What stands in is said in `tests/pools.py`. The rows below are judged by hand; `tests/datacomp` holds the oracle.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.config import parse_yaml
from mmdata.engine import Executor, Runner, RunResult
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor, open_executor
from mmdata.plan import Plan, parse_plan
from mmdata.shards.corpus import ID_DTYPE
from mmdata.shards.subset import read_subset
from mmdata.stages.datacomp import DataComp
from mmdata.stages.pool import Pool
from mmdata.stages.subset import Subset
from mmdata.text.language import num_tokens
from mmdata.text.wordnet import WordNet
from tests.pools import Row, subset_of, uid, write_assets, write_pool, write_wordnet

ROWS = [
    [
        Row("a brown dog runs over the green grass", l14=0.30),  # 0 good for all
        Row("ein brauner Hund läuft über die grüne Wiese", l14=0.40),  # 1 German
        Row("the dog is", width=200, height=600, near=1, l14=0.25),  # 2 three words, aspect just 3, near no target
        Row("the dog is", width=200, height=601, l14=0.25, b32=0.28),  # 3 aspect above 3; the score of LAION-2B, just
        Row("the dogs", near=2, l14=0.20, b32=0.2799),  # 4 two words, but two tokens; the plural of an entity
    ],
    [
        Row("there was a cat on the chair", width=199, l14=0.50),  # 5 too small; a cat is no entity
        Row("they all jump over the fence", near=2, l14=0.10),  # 6 a verb at an entity's offset
        Row("this is the red Dog, my friends", near=1, l14=None),  # 7 `Dog,` is no word of WordNet
        Row(None, l14=0.60),  # 8 no text
        Row("", l14=0.05, url="not a url"),  # 9
        Row("a brown dog runs over the green grass", l14=0.10),  # 10 under the id of row 0
    ],
]
UIDS = {10: uid(0)}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool") / "metadata", ROWS, uids=UIDS)


def fields_of(assets: dict[str, Any], name: str, **options: object) -> dict[str, Any]:
    """Return the fields of `datacomp` for a baseline, with the files that it needs."""
    needed = {
        "basic_filter": ["language_model"], "text_based": ["language_model", "wordnet", "entities"],
        "image_based": ["language_model", "centroids", "targets"],
        "image_based_intersect_clip_score": ["language_model", "centroids", "targets"],
    }.get(name, [])  # fmt: skip
    return {"filter": name, **{key: assets[key] for key in needed}, **options}


def plan_of(pool: Path, fields: dict[str, Any]) -> Plan:
    return Plan(name="pool", source=(source_of(pool, fields),), stages=(DataComp.model_validate(fields),), sink=Subset())


def source_of(pool: Path, fields: dict[str, Any]) -> Pool:
    return Pool(path=str(pool), features=("l14_img",) if "image_based" in fields["filter"] else (), partition_rows=3)


def run(plan: Plan, folder: Path, executor: Executor | None = None) -> RunResult:
    return Runner(plan, str(folder)).execute(executor or InlineExecutor(), quiet=True)


def numbers(ids: np.ndarray) -> list[int]:
    """Return the numbers of the rows that a subset names, with row 10 as 0."""
    assert ids.dtype == ID_DTYPE
    assert np.array_equal(ids, np.sort(ids))
    known = {(int(uid(n)[:16], 16), int(uid(n)[16:], 16)): n for n in range(11)}
    return sorted(known[tuple(pair)] for pair in ids.tolist())


def kept(result: RunResult) -> list[int]:
    return numbers(read_subset(Path(str(result.corpus)) / "subset.npy"))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("no_filter", {}, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("basic_filter", {}, [0, 0, 2, 6, 7]),
        ("text_based", {}, [0, 0, 2, 3, 4, 6]),
        ("clip_score", {"arch": "l14", "threshold": 0.3}, [0, 1, 5, 8]),
        ("clip_score", {"arch": "b32", "threshold": 0.28}, [0, 0, 1, 2, 3, 5, 6, 7, 8, 9]),
        ("image_based", {}, [0, 0, 3, 4, 5, 6]),
        ("image_based_intersect_clip_score", {"arch": "l14", "threshold": 0.25}, [0, 3, 5]),
    ],
)  # fmt: skip
def test_a_baseline_keeps_its_rows(
    tmp_path: Path, pool: Path, assets: dict[str, Any], name: str, options: dict[str, Any], expected: list[int]
) -> None:
    fields = fields_of(assets, name, **options)
    assert numbers(subset_of(source_of(pool, fields), tmp_path / "run", fields)) == expected


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        # In order: 8, 5, 1, 0, then 2 and 3 (0.25), 4, then 6 and 10 (0.10), 9; row 7 has no score and counts as the last.
        (0.05, [8]),  # int(0.55) = 0: the best
        (0.3, [0, 1, 5, 8]),  # int(3.3) = 3: the fourth and what is as good
        (0.4, [0, 1, 2, 3, 5, 8]),  # int(4.4) = 4: the fifth, and its tie
        (0.95, []),  # int(10.45) = 10: the score of a row without one, which nothing reaches
    ],
)
def test_a_fraction_keeps_one_more_and_its_ties(tmp_path: Path, pool: Path, fraction: float, expected: list[int]) -> None:
    plan = plan_of(pool, fields_of({}, "clip_score", arch="l14", fraction=fraction))
    assert kept(run(plan, tmp_path / "run")) == expected


def test_the_fraction_is_of_the_whole_pool(tmp_path: Path, pool: Path, assets: dict[str, Any]) -> None:
    """int(11 * 0.4) = 4 of all rows, before captions and images are looked at."""
    plan = plan_of(pool, fields_of(assets, "image_based_intersect_clip_score", arch="l14", fraction=0.4))
    assert kept(run(plan, tmp_path / "run")) == [0, 3, 5]


def test_every_executor_writes_the_same_subset(tmp_path: Path, pool: Path, assets: dict[str, Any]) -> None:
    """Two baselines, one after the other, keep what both do."""
    best = plan_of(pool, fields_of({}, "clip_score", arch="l14", fraction=0.4))
    plan = best.changed(stages=(*best.stages, *plan_of(pool, fields_of(assets, "basic_filter")).stages))
    found = []
    for name, executor in (("inline", InlineExecutor()), ("processes", open_executor("processes", workers=2))):
        try:
            result = run(plan, tmp_path / name, executor)
        finally:
            executor.close()
        assert kept(result) == [0, 2]
        assert result.corpus is not None
        found.append({path.name: path.read_bytes() for path in Path(result.corpus).glob("subset.*")})
    assert found[0] == found[1]
    assert set(found[0]) == {"subset.npy", "subset.json"}


def test_scores_are_found_once(tmp_path: Path, pool: Path, assets: dict[str, Any]) -> None:
    one = run(plan_of(pool, fields_of(assets, "image_based_intersect_clip_score", arch="l14", threshold=0.3)), tmp_path / "run")
    two = run(plan_of(pool, fields_of(assets, "image_based_intersect_clip_score", arch="l14", threshold=0.2)), tmp_path / "run")
    assert one.computed["language"] == 3  # of rows 0, 1, 5, 8 all but 8 have a caption to ask about
    assert two.computed["language"] == 3  # rows 2, 3 and 4
    assert kept(two) == [0, 3, 4, 5]


def test_the_manifest_says_what_stood_in(tmp_path: Path, pool: Path, assets: dict[str, Any]) -> None:
    result = run(plan_of(pool, fields_of(assets, "image_based")), tmp_path / "run")
    told = json.loads((Path(str(result.corpus)) / "subset.json").read_text(encoding="utf-8"))
    assert told["ids"] == 6
    assert told["funnel"]["rows_in"] == 11
    assert "datacomp_language: lid.176.ftz stands in for lid.176.bin" in told["cautions"]
    assert "nearest_centroid: centroids.pt stands in for a file of DataComp's" in told["cautions"]


def test_published_texts_are_judged(tmp_path: Path, assets: dict[str, Any]) -> None:
    """`this\\0is the dog`: three words to Python, four tokens to fastText; without the NUL they would be three and three."""
    pool = write_pool(tmp_path / "pool", [[Row("this\0is the dog"), Row("this\0dog"), Row("thisdog"), Row("this dog")]])
    fields = fields_of(assets, "image_based")
    assert numbers(subset_of(source_of(pool, fields), tmp_path / "run", fields)) == [0, 1, 3]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{filter: basic}", "`filter`: Input should be 'no_filter'"),
        ("{filter: clip_score, arch: l14}", "`clip_score` needs `arch`, and one of `threshold` and `fraction`"),
        ("{filter: clip_score, threshold: 0.3}", "`clip_score` needs `arch`"),
        ("{filter: laion2b, threshold: 0.3}", "`laion2b` takes no `arch`, `threshold` or `fraction`"),
        ("{filter: basic_filter}", "`basic_filter` needs `language_model`: fastText's lid.176.bin"),
        ("{filter: text_based, language_model: m}", "`text_based` needs `wordnet`: a folder of WordNet 3.0's files"),
        ("{filter: image_based, language_model: m}", "`image_based` needs `centroids`: DataComp's SCALE_centroids_l14.pt"),
        ("{filter: no_filter, language_model: m}", "`no_filter` takes no `language_model`"),
        ("{filter: clip_score, arch: l14, fraction: 1}", "`fraction`: Input should be less than 1"),
    ],
)
def test_what_a_baseline_lacks_is_named(pool: Path, stage: str, message: str) -> None:
    text = f"name: p\nsource: {{pool: {{path: {pool}}}}}\nstages:\n  - datacomp: {stage}\n"
    with pytest.raises(ConfigError) as error:
        parse_plan(parse_yaml(text, "p.yaml"))
    assert "p.yaml:4" in str(error.value)
    assert message in str(error.value)


def test_features_that_the_pool_does_not_give_are_missed_on_the_recipes_line(pool: Path, assets: dict[str, Any]) -> None:
    fields = {key: assets[key] for key in ("language_model", "centroids", "targets")}
    text = (
        f"name: p\nsource: {{pool: {{path: {pool}}}}}\nstages:\n  - datacomp: {json.dumps({'filter': 'image_based', **fields})}\n"
    )
    with pytest.raises(ConfigError, match=r"p.yaml:4: `nearest_centroid` reads `l14_img`, which nothing before it writes"):
        parse_plan(parse_yaml(text, "p.yaml"))


def test_a_file_with_a_published_name_must_be_it(tmp_path: Path, pool: Path, assets: dict[str, Any]) -> None:
    fake = tmp_path / "small_centroids_l14.pt"
    fake.write_bytes(Path(assets["centroids"]).read_bytes())
    plan = plan_of(pool, fields_of({**assets, "centroids": str(fake)}, "image_based"))
    with pytest.raises(ConfigError, match=r"small_centroids_l14.pt: its SHA-256 is") as error:
        run(plan, tmp_path / "run")
    assert "get it again from release v0.1.0-alpha of https://github.com/sagadre/datacomp_baseline_assets" in str(error.value)


def test_a_missing_file_says_where_it_is_to_be_had(tmp_path: Path, pool: Path, assets: dict[str, Any]) -> None:
    plan = plan_of(pool, fields_of({**assets, "language_model": str(tmp_path / "lid.176.bin")}, "basic_filter"))
    with pytest.raises(ConfigError, match=r"lid.176.bin: cannot be read: No such file") as error:
        run(plan, tmp_path / "run")
    assert "get it from fastText's language identification page" in str(error.value)


def test_centroids_that_would_run_code_are_refused(tmp_path: Path, pool: Path, assets: dict[str, Any]) -> None:
    import pickle

    canary = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (canary,))

    bad = tmp_path / "centroids.pt"
    bad.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match=r"centroids.pt: cannot be read without running code from it"):
        run(plan_of(pool, fields_of({**assets, "centroids": str(bad)}, "image_based")), tmp_path / "run")
    assert not canary.exists()


def test_laion2b_asks_gcld3_and_nothing_else(tmp_path: Path, pool: Path) -> None:
    plan = plan_of(pool, fields_of({}, "laion2b"))
    try:
        import gcld3  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"`gcld3` is not installed\n  hint: pip install 'mmdata\[gcld3\]'"):
            run(plan, tmp_path / "run")
    else:
        # CLD3 takes rows 0 and 10 for Luxembourgish; row 3 has just the score, row 4 just not.
        assert kept(run(plan, tmp_path / "run")) == [2, 3, 5, 6, 7]


@pytest.mark.parametrize(
    ("text", "num"),
    [("", 0), ("a b", 2), (" a\t b ", 2), ("a\n", 2), ("\n\n", 2), ("a\nb", 3), ("a\u00a0b", 1), ("a\0b", 2)],
)
def test_tokens_are_fasttexts(text: str, num: int) -> None:
    """Newlines are tokens, and no-break spaces join: `a\\n` is two tokens, `a\\u00a0b` is one."""
    assert num_tokens(text) == num


def test_the_first_sense_of_a_word_is_wordnets(tmp_path: Path) -> None:
    """The word itself in any part of speech, then base forms: by the exception list, or else by endings taken off, also twice."""
    offsets = write_wordnet(tmp_path / "wordnet")
    known = WordNet(tmp_path / "wordnet")
    words = {"dog": "dog", "Dogs": "dog", "geese": "goose", "jumping": "jump", "jumped": "jump", "reder": "red", "now": "now"}
    assert {word: known.first_sense(word) for word in words} == {word: offsets[base] for word, base in words.items()}
    assert [known.first_sense(word) for word in ("dog,", "dogss", "nows", "", "gooses", "dogses")] == [
        None,
        101,
        None,
        None,
        103,
        101,
    ]
    (tmp_path / "wordnet/verb.exc").unlink()
    with pytest.raises(ConfigError, match=r"wordnet: holds no `verb.exc`\n  hint: unpack WordNet 3.0"):
        WordNet(tmp_path / "wordnet")
