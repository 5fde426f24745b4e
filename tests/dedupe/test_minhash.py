"""Near-duplicate texts by MinHash: against comparing all with all in plain Python, and against theory."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.dedupe.minhash import (
    MinHash,
    Sketches,
    band_keys,
    chance_met,
    collapse,
    minhash_for,
    near_texts,
    near_values,
    signatures,
    sketches,
    whole_texts,
)
from mmdata.errors import RunError
from mmdata.storage.digest import digest_bytes
from tests.dedupe import plain
from tests.dedupe.plain import column, prose

DATA = Path(__file__).parents[2] / "mmdata" / "demo" / "data"
SURE = MinHash(n=2, bands=80, rows=1)  # misses a pair of similarity 0.4 once in 10^17 times

Found = dict[tuple[int, int], float]


def told(texts: pa.ChunkedArray, threshold: float, way: MinHash, share: int = 0, of: int = 1) -> Found:
    pairs = near_texts(texts, threshold, way, share, of)
    both = zip(pairs.left_P.tolist(), pairs.right_P.tolist(), strict=True)
    found = dict(zip(both, pairs.distance_P.tolist(), strict=True))
    assert len(found) == len(pairs)
    return found


def all_with_all(texts: list[str | None], threshold: float, num: int) -> Found:
    runs = [set(plain.runs(text, num)) for text in texts]
    alike = {(a, b): plain.jaccard(runs[a], runs[b]) for b in range(len(texts)) for a in range(b)}
    return {pair: float(np.float32(1 - share)) for pair, share in alike.items() if share >= threshold}


def mutated(texts: list[list[str]], chance: random.Random) -> list[str | None]:
    """Return texts, some of them null or empty, and as many that differ from one of them in a few places."""
    more = []
    for _ in texts:
        copy = list(chance.choice(texts))
        for _ in range(chance.randrange(3)):
            copy.insert(chance.randrange(len(copy) + 1), chance.choice(["x", "一", "w1"]))
        more.append(copy[chance.randrange(2) :])
    found: list[str | None] = [" ".join(words) for words in texts + more]
    return [*found, None, "", "...", None]


few_texts = st.builds(
    lambda seed, sizes: mutated([prose(seed + at, size, 6 + seed % 30) for at, size in enumerate(sizes)], random.Random(seed)),
    st.integers(0, 1 << 20),
    st.lists(st.integers(0, 14), min_size=1, max_size=12),
)


@settings(max_examples=60, deadline=None)
@given(few_texts, st.sampled_from([0.4, 0.5, 0.75, 0.8, 1.0]), st.integers(1, 3))
def test_near_texts_are_those_of_plain_python(texts: list[str | None], threshold: float, num: int) -> None:
    way = MinHash(num, SURE.bands, SURE.rows)
    assert told(column(texts), threshold, way) == all_with_all(texts, threshold, num)


@settings(max_examples=40, deadline=None)
@given(few_texts, st.integers(1, 7), st.integers(1, 4))
def test_shares_together_hold_each_pair_once(texts: list[str | None], of: int, rows: int) -> None:
    way = MinHash(n=1, bands=6, rows=rows)
    shares = [told(column(texts), 0.3, way, share, of) for share in range(of)]
    together: Found = {}
    for share in shares:
        assert not together.keys() & share.keys()
        together |= share
    assert together == told(column(texts), 0.3, way)
    assert together.items() <= all_with_all(texts, 0.3, 1).items()


@settings(max_examples=30, deadline=None)
@given(few_texts, st.integers(0, 1 << 20))
def test_the_order_of_texts_and_how_they_are_cut_never_matters(texts: list[str | None], seed: int) -> None:
    way = MinHash(n=1, bands=6, rows=2)
    order = np.random.default_rng(seed).permutation(len(texts))
    cut = seed % len(texts)
    again = pa.chunked_array([column([texts[at] for at in part]).chunk(0) for part in (order[:cut], order[cut:])])
    sides = {tuple(sorted((int(order[a]), int(order[b])))): apart for (a, b), apart in told(again, 0.3, way).items()}
    assert sides == told(column(texts), 0.3, way)


def test_texts_without_words_are_near_nothing_and_short_ones_near_their_like() -> None:
    texts = [None, "", "...", "🐶", None, "Dog", "dog!", "a dog", "A  DOG", "dog a", "一只狗", "一只狗。", "一只猫", "一隻狗"]
    assert told(column(texts), 0.8, MinHash()) == {(5, 6): 0.0, (7, 8): 0.0, (10, 11): 0.0}
    assert len(near_texts(pa.chunked_array([], pa.string()), 0.8)) == 0
    assert len(near_texts(column([None, ""]), 0.8)) == 0


def test_texts_without_spaces_are_compared_by_their_characters() -> None:
    sentence = "春天的早晨、小狗在公园的草地上追着一只红色的皮球跑来跑去。孩子们在旁边笑"
    texts = [sentence, sentence.replace("红色", "蓝色"), sentence.replace("、", ""), sentence[::-1]]
    found = told(column(texts), 0.5, MinHash(5, 64, 1))
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    assert found == all_with_all([*texts], 0.5, 5)


def test_planted_copies_of_real_captions_are_found_and_no_others() -> None:
    captions = [json.loads(line)["text"] for line in (DATA / "pairs.jsonl").read_text().splitlines()]
    captions = list(dict.fromkeys(text for text in captions if text))
    texts: list[str | None] = [*captions, *(f"{text.upper()}!!" for text in captions)]
    for way in (MinHash(n=1), MinHash(n=5)):
        expected = all_with_all(texts, 0.8, way.n)
        assert expected.keys() >= {(at, at + len(captions)) for at in range(len(captions))}
        found = told(column(texts), 0.8, way)
        assert found.items() <= expected.items()
        assert len(found) >= 0.99 * len(expected)


def test_planted_copies_of_a_document_are_found() -> None:
    document = json.loads((DATA / "documents.jsonl").read_text())
    blocks = document["texts"]
    rows = [("a", at, text) for at, text in enumerate(blocks)]
    rows += [("b", at, text and text.rpartition(" ")[0]) for at, text in enumerate(blocks)]
    rows += [("c", at, text) for at, text in enumerate(reversed(blocks))]
    rows += [("d", 0, None), ("d", 1, None), ("e", 0, "A small sailing boat needs three things"), ("f", 0, "")]
    random.Random(0).shuffle(rows)
    ids, positions, texts = zip(*rows, strict=True)
    whole = whole_texts(pa.table({"sample_id": ids, "position": pa.array(positions, pa.int32()), "text": texts}))
    assert whole.column("sample_id").to_pylist() == ["a", "b", "c", "d", "e", "f"]
    assert whole.column("text").to_pylist()[0] == "\n".join(text for text in blocks if text)
    assert whole.column("text").to_pylist()[3:] == [None, "A small sailing boat needs three things", ""]
    found = told(whole.column("text"), 0.6, minhash_for(0.6))
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    assert found == all_with_all(whole.column("text").to_pylist(), 0.6, 5)


# Against theory.


def alike(rng: np.random.Generator, num: int, common: int, own: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return pairs of texts of `common` words that both have, and `own` that one has."""
    words = rng.integers(0, 1 << 60, (num, common + 2 * own)).astype(str)
    sides = [words[:, : common + own], np.concatenate([words[:, :common], words[:, common + own :]], axis=1)]
    one, other = (column([" ".join(row) for row in side]) for side in sides)
    return one, other


@pytest.mark.parametrize(("common", "own"), [(9, 1), (20, 10), (120, 15), (4, 8)])
def test_hashes_agree_as_often_as_texts_are_alike(common: int, own: int) -> None:
    num, similarity = 500, common / (common + 2 * own)
    way = MinHash(n=1, bands=24, rows=5)
    one, other = (signatures(side, way) for side in alike(np.random.default_rng(common), num, common, own))
    agree = (one == other).mean(axis=1)
    spread = (similarity * (1 - similarity) / 120) ** 0.5
    assert abs(agree.mean() - similarity) < 4 * spread / num**0.5
    assert agree.std() == pytest.approx(spread, rel=0.15)  # as wide as if the orders had nothing to do with each other
    for bands, rows in [(24, 5), (15, 8), (60, 2), (5, 24)]:
        met = (band_keys(one[:, : bands * rows], bands) == band_keys(other[:, : bands * rows], bands)).any(axis=1).mean()
        chance = chance_met(similarity, bands, rows)
        assert abs(met - chance) < 4 * (chance * (1 - chance) / num) ** 0.5 + 1e-3


def test_as_many_pairs_are_found_as_theory_says() -> None:
    one, other = alike(np.random.default_rng(2), 1500, 18, 4)
    way = MinHash(n=1, bands=10, rows=7)
    found = told(pa.chunked_array([*one.chunks, *other.chunks]), 0.6, way)
    assert found.keys() <= {(at, at + 1500) for at in range(1500)}
    chance = chance_met(18 / 26, 10, 7)
    assert 0.5 < chance < 0.6
    assert abs(len(found) / 1500 - chance) < 4 * (chance * (1 - chance) / 1500) ** 0.5
    assert set(found.values()) == {float(np.float32(1 - 18 / 26))}


def test_the_way_for_a_threshold() -> None:
    assert minhash_for(0.8) == MinHash()
    assert chance_met(0.8, 14, 8) == pytest.approx(0.924, abs=1e-3)  # of FineWeb
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        way = minhash_for(threshold)
        assert way.bands * way.rows <= 128
        assert chance_met(threshold, way.bands, way.rows) >= 0.99
    assert minhash_for(0.05).rows == 1  # nothing is sure enough
    assert (chance_met(0.0, 5, 5), chance_met(1.0, 5, 5)) == (0.0, 1.0)


# Large.


def test_a_hundred_thousand_equal_texts_take_no_longer_than_others() -> None:
    spam = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), ["Buy now! Buy now, buy cheap shoes now"]).cast(
        pa.string()
    )
    texts = pa.chunked_array([spam, pa.array([" ".join(prose(1, 30)), "buy cheap shoes now, buy", " ".join(prose(1, 31))])])
    way = MinHash(n=4)
    values = collapse(texts, sketches(texts, way), way)
    assert len(values.first_U) == 4
    pairs = near_values(values, 0.9)
    assert sorted(values.first_U[[*pairs.left_P, *pairs.right_P]]) == [100_000, 100_002]
    with pytest.raises(RunError, match=r"more than 200,000,000 pairs of texts have a similarity of 0.9 or more\s+hint: take"):
        near_texts(texts, 0.9, way)


def test_texts_from_a_template_are_refused_before_they_are_compared() -> None:
    texts = column([f"{' '.join(prose(1, 40))} {number}" for number in range(200)])
    with pytest.raises(
        RunError, match=r"[\d,]+ pairs of texts would have to be compared: many texts are alike[\s\S]*hint: take a higher"
    ):
        near_texts(texts, 0.99, MinHash(), max_pairs=100)
    assert len(near_texts(texts, 0.99, MinHash())) == 0
    assert len(near_texts(texts, 0.9, MinHash())) == 200 * 199 // 2
    with pytest.raises(RunError, match=r"more than 19,000 pairs of texts"):
        near_texts(texts, 0.9, MinHash(), max_pairs=19_000)


# In steps.


def test_sketches_of_parts_are_those_of_the_whole() -> None:
    texts = column([*mutated([prose(at, 12) for at in range(40)], random.Random(1)), " ".join(prose(1, 30_000))])
    way = MinHash(n=3)
    whole = sketches(texts, way)
    parts = [sketches(texts.slice(start, 17), way).to_table() for start in range(0, len(texts), 17)]
    again = Sketches.from_table(pa.concat_tables(parts))
    assert np.array_equal(again.keys_NB, whole.keys_NB)
    assert np.array_equal(again.set_N2, whole.set_N2)
    assert np.array_equal(band_keys(signatures(texts, way), way.bands), whole.keys_NB)


def test_signatures_are_the_same_on_every_machine() -> None:
    texts = column(["A photo of a small dog, asleep on a red sofa by the window", "一只狗", None, "two words"])
    found = signatures(texts, MinHash())
    assert found.shape == (4, 126)
    assert (found[2] == 0xFFFFFFFF).all()
    assert digest_bytes(found.astype("<u4").tobytes())[:16] == "cef967954bd9962d"
    assert digest_bytes(sketches(texts, MinHash()).keys_NB.astype("<u8").tobytes())[:16] == "76d091f16e40de4d"
    assert (signatures(texts, MinHash(seed=1))[0] != found[0]).all()
