"""Words, runs of words, and what a text has in common with a reference: against plain Python."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.dedupe import words as module
from mmdata.dedupe.cross import Asking
from mmdata.dedupe.kept import items_of
from mmdata.dedupe.met import Nearest, first_of
from mmdata.dedupe.words import runs_of, words_of
from mmdata.stages.comparisons import Worded
from mmdata.storage.digest import digest_bytes
from tests.dedupe import plain
from tests.dedupe.plain import ALPHABETS, column, prose

DATA = Path(__file__).parents[2] / "mmdata" / "demo" / "data"

texts_of_all_kinds = st.lists(
    st.none() | st.sampled_from(ALPHABETS).flatmap(lambda letters: st.text(letters, max_size=30)), max_size=12
)


def demo_captions() -> list[str]:
    texts = [json.loads(line)["text"] for line in (DATA / "pairs.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(text for text in texts if text))


@settings(max_examples=150, deadline=None)
@given(texts_of_all_kinds, st.integers(1, 5), st.integers(1, 40))
def test_runs_are_those_of_plain_python(texts: list[str | None], num: int, at_once: int) -> None:
    expected = [plain.runs(text, num) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", at_once)  # texts of several slices
        found = runs_of(column(texts), num)
    assert found.num_N().tolist() == [len(runs) for runs in expected]
    flat = [run for runs in expected for run in runs]
    assert len(set(found.hash_S.tolist())) == len(set(flat))
    assert len(set(zip(flat, found.hash_S.tolist(), strict=True))) == len(set(flat))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's best friend, 2024!", ["a", "man", "s", "best", "friend", "2024"]),
        ("Cafe\u0301  ＡＢＣ½", ["café", "abc1", "2"]),
        ("一只狗 dog跑步", ["一", "只", "狗", "dog", "跑", "步"]),
        ("ｶﾞｰﾄﾞ ひ", ["ガ", "ー", "ド", "ひ"]),
        ("ที่นี่ok", ["ที่", "นี่", "ok"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("🐶❤️ …", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert plain.words(text) == expected
    apart = words_of(column(expected))  # each of these is one word
    assert words_of(column([text])).hash_S.tolist() == apart.hash_S.tolist()
    assert len(apart.hash_S) == len(expected)


def test_a_word_of_megabytes_is_known_by_its_start() -> None:
    blob = "x" * 5_000_000
    one, other, short = words_of(column([blob, blob[:256] + "y", blob[:255]])).hash_S
    assert one == other != short


def test_runs_are_the_same_on_every_machine() -> None:
    runs = runs_of(column(["A photo of a small dog, asleep on a red sofa by the window", "一只狗", None, "two words"]), 8)
    assert runs.first_N.tolist() == [0, 7, 8, 8, 9]
    assert digest_bytes(runs.hash_S.astype("<u8").tobytes())[:16] == "0a9545039b7e9303"


def hits(texts: pa.ChunkedArray, reference: pa.ChunkedArray, num: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return which text of a reference each text has most runs in common with, -1 for none, and which share of its own."""
    way = Worded(f"runs{num}(text)", share=1e-9)
    held, asked = (items_of(way.kept(pa.table({"text": some})), way.facts({})) for some in (reference, texts))
    known, once = way.once(held.values), way.once(asked.values)
    row = held.owner_M[first_of(known.of_M, len(known.values))]
    nearest = Nearest(len(once.values))
    for index in way.indexes(known.values, Asking(len(texts)), None):
        met = index.near(once.values)
        nearest.add(met.asked_M, 0, row[met.held_M], met.distance_M)
    found = way.by_rows(nearest, once, asked.owner_M, len(texts))
    return found.place_N, np.where(found.of_N >= 0, 1 - found.distance_N, 0)


def plain_hits(texts: list[str | None], reference: list[str | None], num: int) -> tuple[list[int], list[float]]:
    first: dict[tuple[str, ...], int] = {}
    for place, text in enumerate(reference):
        if len(plain.words(text)) >= 3:
            for run in plain.runs(text, num):
                first.setdefault(run, place)
    places, shares = [], []
    for text in texts:
        runs = plain.runs(text, num)
        met = Counter(first[run] for run in runs if run in first) if len(plain.words(text)) >= 3 else Counter[int]()
        places.append(min(met, key=lambda place: (-met[place], place)) if met else -1)
        shares.append(float(np.float32(met.total() / max(len(runs), 1))))
    return places, shares


@settings(max_examples=100, deadline=None)
@given(texts_of_all_kinds, texts_of_all_kinds, st.integers(2, 5))
def test_hits_are_those_of_plain_python(texts: list[str | None], reference: list[str | None], num: int) -> None:
    place_N, share_N = hits(column(texts), column(reference), num)
    places, shares = plain_hits(texts, reference, num)
    assert place_N.tolist() == places
    assert share_N == pytest.approx(shares, abs=1e-6)


def test_the_share_says_how_much_of_a_text_is_known() -> None:
    known = prose(1, 40)
    reference = ["a dog", "The red fox sleeps.", " ".join(known), " ".join(known[20:] + prose(2, 20))]
    texts = [
        "A dog!", "the red fox   sleeps", "The red fox sleeps here", "red fox", None, "",
        " ".join(known), " ".join(known[:20] + prose(3, 20)), " ".join(known[20:28]), " ".join(prose(4, 30)),
    ]  # fmt: skip
    place_N, share_N = hits(column(texts), column(reference))
    assert place_N.tolist() == [-1, 1, -1, -1, -1, -1, 2, 2, 2, -1]
    assert share_N.tolist() == pytest.approx([0, 1, 0, 0, 0, 0, 1, 13 / 33, 1, 0])
    assert hits(column(texts), column(reference), 13)[0].tolist() == [-1, 1, -1, -1, -1, -1, 2, 2, -1, -1]


def test_the_text_that_most_runs_meet_is_named() -> None:
    one, other, twin = (" ".join(prose(seed, 30)) for seed in (1, 2, 3))
    reference = column([one, other, twin, twin])
    texts = [" ".join([*one.split()[:10], *other.split()[:20]]), twin, " ".join([*other.split()[:12], *one.split()[:12]])]
    assert hits(column(texts), reference)[0].tolist() == [1, 2, 0]


def test_captions_of_real_pictures_are_found_in_what_quotes_them() -> None:
    captions = demo_captions()
    quoted = [f"Stock photo: {caption.upper()} -- (c) 2024 some agency, all rights kept" for caption in captions]
    place_N, share_N = hits(column(quoted), column(captions), 5)
    long = np.array([len(plain.words(caption)) >= 5 for caption in captions])
    assert long.sum() > 5
    assert all(set(plain.runs(captions[place_N[at]], 5)) & set(plain.runs(quoted[at], 5)) for at in np.flatnonzero(long))
    assert (place_N == np.arange(len(captions)))[long].mean() > 0.9  # some flags' end alike
    assert (share_N[long] > 0).all()


def test_nothing_is_in_an_empty_reference() -> None:
    empty = column([None, "", "..."])
    assert hits(column(["a b c d", None]), empty)[0].tolist() == [-1, -1]
    assert len(hits(pa.chunked_array([], pa.string()), empty)[0]) == 0
