"""Languages, statistics of texts, and the rules that papers made of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmdata.engine import Runner
from mmdata.errors import ConfigError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan
from mmdata.schema import PARTITION, ROW
from mmdata.stages.language import Language
from mmdata.stages.passes import Judge
from mmdata.stages.sources import Catalog
from mmdata.stages.text_quality import DocumentQuality, TextQuality
from mmdata.stages.text_statistics import TextStatistics
from mmdata.stages.verbs import Batch, Filter, Map, WorkerContext
from mmdata.storage import open_store
from mmdata.text.language import detect, language_model
from mmdata.text.rules import RULES, rules_of, statistics_of
from mmdata.text.statistics import STATISTICS, count
from tests.conftest import write_yaml

TEXTS = ["there is a dog on the green grass", "ein brauner Hund läuft über die grüne Wiese", "un chien court dans l'herbe verte"]


def opened(stage: Map | Filter, **columns: object) -> pa.Table:
    num = len(next(iter(columns.values())))  # type: ignore[arg-type]
    return stage.open(WorkerContext(open_store(".")))(Batch(pa.table({ROW: list(range(num)), **columns})))


def one(text: str, name: str, lists: dict[str, frozenset[str]] | None = None) -> float:
    return float(count([text], [name], lists)[name][0])


def test_languages_are_found() -> None:
    codes, scores = detect(TEXTS)
    assert codes == ["en", "de", "fr"]
    assert scores.dtype == np.float32
    assert ((scores > 0.5) & (scores <= 1)).all()


def test_a_newline_is_a_space() -> None:
    (plain, broken), (one_, two) = detect(["there is a dog on the grass", "there is a dog\non the grass"])
    assert (plain, one_) == (broken, two)


def test_what_has_no_language_is_null_unless_the_model_is_to_be_asked() -> None:
    texts = pa.array([None, "", " \n", TEXTS[0]], pa.string())
    found = opened(Language(), text=texts)
    assert found.column("language").to_pylist() == [None, None, None, "en"]
    assert found.column("language_score").null_count == 3
    asked = opened(Language(column="l", blank="ask"), text=texts).column("l")
    assert asked.null_count == 1


def test_the_models_digest_is_part_of_the_key(tmp_path: Path) -> None:
    lite = language_model("lite")
    assert lite is not None
    assert lite.published
    assert Language().weights() == (lite.sha256,)
    fake = tmp_path / "lid.176.bin"
    fake.write_bytes(lite.path.read_bytes())
    with pytest.raises(ConfigError, match=r"lid.176.bin: its SHA-256 is 8f34\w+, but that of the published file is 7e69ec5"):
        Language(model=str(fake)).weights()
    own = fake.rename(tmp_path / "own.ftz")
    assert Language(model=str(own)).weights() == Language().weights()
    assert detect(TEXTS, str(own))[0] == ["en", "de", "fr"]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"no model at all")
    with pytest.raises(ConfigError, match=r"model.bin: no model of fastText"):
        detect(["a"], str(path))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("num_words", "a bb\n ccc\u00a0d", 4),
        ("mean_word_length", "a bb\n ccc", 2),
        ("symbol_ratio", "#a ... b\u2026 #c", 1),  # four symbols, four words
        ("bullet_lines", "- a\n\u2022 b\nc\n\n* d", 0.75),
        ("ellipsis_lines", "a...\nb\u2026\nc\nd. ", 0.5),
        ("alphabetic_words", "a 1 b2 ---", 0.5),
        ("num_stop_words", "The the AND of", 3),
        ("duplicate_lines", "a\nb\na\n\na", 0.5),  # the second and third `a` of four lines
        ("duplicate_line_chars", "aa\nb\naa", 0.4),
        ("duplicate_paragraphs", "a\nb\n\nc\n\na\nb", 1 / 3),
        ("duplicate_paragraph_chars", "aaa\n\nb\n\naaa", 3 / 7),
        ("top_2gram_chars", "aa b aa b c", 6 / 7),  # `aa b` twice
        ("top_2gram_chars", "a b c d", 0),
        ("top_2gram_chars", "a a a", 1),  # overlapping: every word lies in `a a`
        ("top_2gram_chars", "a b a b cc dd cc dd", 8 / 12),  # of equals the longer
        ("duplicate_5gram_chars", "a b c d e x a b c d e", 10 / 11),
        ("duplicate_6gram_chars", "a b c d e x a b c d e", 0),
        ("duplicate_10gram_chars", "a b c d e f g h i j " * 2, 1),
        ("c4_lines", "One two three four five.\nToo short.\nNo mark at the end of it\nUse javascript to read on now.", 0.25),
        ("c4_sentences", "One two three. Four five! \nShort.\nIt said so to me: \u201cyes.\u201d", 3),
        ("lorem_ipsum", "Lorem Ipsum dolor", 1),
        ("curly_brackets", "a {b} {", 3),
        ("num_plain_words", "A, b! -- 12 c3", 3),
        ("char_repetition", "ab" * 10, 1),  # two 10-grams, of which the more frequent (six of eleven) counts: sqrt(2) is 1
        ("char_repetition", "abcdefghijklmnop", 0),
        ("word_repetition", "a b c d e. A b c d e!", 2 / 6),
        ("special_chars", "a, 1b", 0.6),
        ("stop_words", "The dog and a cat", 0.6),
        ("punctuation", "a, b.", 0.5),
        ("paragraph_punctuation", "a b", 1),
        ("paragraph_punctuation", "a " * 12, 0),
    ],
)
def test_a_statistic_is_what_it_says(name: str, text: str, value: float) -> None:
    expected = 6 / 11 if (name, text) == ("char_repetition", "ab" * 10) else value
    assert one(text, name) == pytest.approx(expected)
    # The same within a batch of others, a null and an empty text among them.
    found = count(["x y z", None, text, "", "a b a b"], [name])[name]
    assert found[2] == pytest.approx(expected)
    assert np.isnan(found[1])
    assert np.isfinite(found[[0, 3, 4]]).all()


def test_a_text_is_no_neighbour_of_the_next() -> None:
    """Equal texts, one after the other, hold nothing twice."""
    found = count(["a b c d e f"] * 3, [*(f"top_{n}gram_chars" for n in (2, 3, 4)), "duplicate_5gram_chars", "char_repetition"])
    assert all((values == 0).all() for values in found.values())


def test_lists_of_words(tmp_path: Path) -> None:
    assert one("Bad good, bad", "flagged_words", {"flagged_words": frozenset(["bad"])}) == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="the statistic `flagged_words` needs a list of words"):
        one("a", "flagged_words")
    with pytest.raises(ConfigError, match="no statistic is called `num_word`\n  hint: did you mean `num_words`"):
        one("a", "num_word")
    (tmp_path / "bad.txt").write_text("Bad\n", encoding="utf-8")
    bad = str(tmp_path / "bad.txt")
    stage = TextStatistics.model_validate({
        "rules": ["obelics_paragraph_words"], "lists": {"flagged": bad, "common": bad},
    })  # fmt: skip
    found = opened(stage, text=["bad day", None])
    assert found.to_pylist() == [{"flagged_words": 0.5, "common_words": 0.5}, {"flagged_words": None, "common_words": None}]
    assert len(stage.inputs()) == 2
    with pytest.raises(ValueError, match=r"`obelics_paragraph_words` needs `lists: {flagged: FILE, common: FILE}`"):
        TextStatistics(rules=("obelics_paragraph_words",))


def test_every_rule_has_its_statistic_and_every_set_its_source() -> None:
    assert set(statistics_of(rules_of(RULES))) <= set(STATISTICS)
    assert all("arXiv:" in rules.source for rules in RULES.values())


PROSE = (
    "The keeper of the old lighthouse had a lamp that could be seen from far out at sea. In the spring, when fog hung low over "
    "the bay, he would climb up to the gallery and wait there with a cup of tea. Sailors said it was his patience, more than the "
    "light, which brought them home. They have never told him so, and he has not asked; but every autumn someone leaves a barrel "
    "of herring by his door."
)


def test_rules_judge_rows_by_their_columns() -> None:
    texts = [PROSE, "spam " * 60, "short", None, None, PROSE.replace("lamp", "{lamp}")]
    rules = ("gopher_quality", "gopher_repetition", "c4")
    columns = opened(TextStatistics(rules=rules), text=pa.array(texts, pa.string()))
    kinds = {"text": pa.array(texts, pa.string()), "document": [False] * 3 + [True, False, False], "media": ["image"] * 6}
    found = opened(TextQuality(rules=rules), **{name: columns.column(name) for name in columns.column_names}, **kinds)
    assert found.column("reason").to_pylist() == [
        None, "num_stop_words_below", "num_words_below", None, "text_missing", "curly_brackets_above",
    ]  # fmt: skip
    assert found.column("value").to_pylist() == [None, 0, 1, None, None, 2]
    assert set(found.column("reason").to_pylist()) - {None} <= set(TextQuality(rules=rules).reasons())


def test_obelics_keeps_paragraphs_of_prose() -> None:
    texts = [PROSE, "Home | About | Contact | Login | 2021", "dog cat cow hen fox owl elk", "aaaa " * 40]
    rules = ("obelics_paragraph",)
    columns = opened(TextStatistics(rules=rules), text=texts)
    kinds = {"text": texts, "document": [True] * 4, "media": pa.nulls(4, pa.string())}
    found = opened(TextQuality(rules=rules), **{name: columns.column(name) for name in columns.column_names}, **kinds)
    assert found.column("reason").to_pylist() == [None, "special_chars_above", "stop_words_below", "char_repetition_above"]


def test_documents_are_judged_whole_and_pairs_are_not() -> None:
    """Document `a` is prose in two blocks around an image; `b` is short; the pair is short, too."""
    half = PROSE.index("In the spring")
    table = pa.table({
        PARTITION: pa.array([3] * 6, pa.int64()), ROW: pa.array(range(6), pa.int64()),
        "sample_id": ["a", "a", "a", "b", "b", "c"], "position": pa.array([0, 1, 2, 0, 1, 0], pa.int32()),
        "document": [True] * 5 + [False], "text": pa.array([PROSE[:half], None, PROSE[half:], "So few.", None, "x"], pa.string()),
    })  # fmt: skip
    (judge,) = DocumentQuality().passes()
    assert isinstance(judge, Judge)
    found = judge.work(table, None).to_pylist()
    assert [(row[ROW], row["reason"], row["value"]) for row in found] == [
        (3, "num_plain_words_below", 2), (4, "num_plain_words_below", 2),
    ]  # fmt: skip


def test_blocks_go_first_and_then_documents(tmp_path: Path) -> None:
    """Of `menu` no block is a paragraph; of `short` one is left, too short for a document; `whole` stays."""
    half = PROSE.index("In the spring")
    line = "There was a light by the old sea wall."
    documents = [
        {"images": [None, "http://a/1.jpg", None], "texts": [PROSE[:half], None, PROSE[half:]]},
        {"images": [None, "http://a/2.jpg"], "texts": ["Home | About | Contact | Login | 2021", None]},
        {"images": [None, "http://a/3.jpg", None], "texts": [line, None, "a b c"]},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(item) + "\n" for item in documents), encoding="utf-8")
    write_yaml(tmp_path, "entries:\n  d: {files: [d.jsonl], shape: documents}\n", "catalog.yaml")
    plan = Plan(
        name="d", source=(Catalog(file=str(tmp_path / "catalog.yaml"), entry="d"),),
        stages=(
            TextStatistics(rules=("obelics_paragraph",)), TextQuality(rules=("obelics_paragraph",)), DocumentQuality(),
        ),
    )  # fmt: skip
    result = Runner(plan, str(tmp_path / "run")).execute(InlineExecutor(), quiet=True)
    assert result.funnel["kept"] == 3
    assert sorted(result.by_stage) == [
        ("document_quality", "num_plain_words_below", 2), ("text_quality", "num_plain_words_below", 1),
        ("text_quality", "sample_incomplete", 1), ("text_quality", "special_chars_above", 1),
    ]  # fmt: skip


def test_unknown_rules_are_refused_with_a_near_name() -> None:
    with pytest.raises(ValueError, match="no rules are called `gopher`; did you mean"):
        TextQuality(rules=("gopher",))
