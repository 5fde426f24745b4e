"""Hashes and vectors of two sets that are near each other: the same as by brute force, whatever they are and however cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.dedupe import cross
from mmdata.dedupe.cosine import numpy_screen
from mmdata.dedupe.cross import Asking, HashIndex, cross_hashes, hash_indexes
from mmdata.dedupe.cross_vectors import VectorIndex, distinct
from mmdata.dedupe.hamming import collapse
from mmdata.dedupe.met import Met, Nearest


def by_brute_force(new: np.ndarray, past: np.ndarray, radius: int) -> set[tuple[int, int, int]]:
    one, other = (side.reshape(len(side), 1 if side.ndim == 1 else side.shape[1]) for side in (new, past))
    distance = np.bitwise_count(one[:, None] ^ other[None]).sum(axis=2)
    return {(int(a), int(b), int(distance[a, b])) for a, b in np.argwhere(distance <= radius)}


def told(met: Met) -> set[tuple[int, int, int]]:
    rows = [(int(a), int(b), int(c)) for a, b, c in zip(met.held_M, met.asked_M, met.distance_M, strict=True)]
    assert len(set(rows)) == len(rows)  # each pair once
    return set(rows)


def related(num: int, words: int, flips: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return new hashes and a past of which a third are new ones with some bits changed, and a few are equal."""
    rng = np.random.default_rng(seed)
    new = rng.integers(0, 1 << 64, (num, words), np.uint64, endpoint=False)
    past = rng.integers(0, 1 << 64, (num * 3, words), np.uint64, endpoint=False)
    for place in range(0, len(past), 3):
        past[place] = new[rng.integers(num)]
        for bit in rng.integers(0, 64 * words, rng.integers(0, flips + 1)):
            past[place, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    past[:4] = new[0]
    return (new[:, 0], past[:, 0]) if words == 1 else (new, past)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 63), st.integers(0, 63)), max_size=30),
    st.integers(0, 12),
    st.integers(1, 9),
)
def test_all_pairs_are_found_each_once(values: list[int], made: list[tuple[int, int, int]], radius: int, chunk: int) -> None:
    new = np.array(values, np.uint64)
    past = np.array([(values[a % len(values)] if values else a) ^ 1 << b ^ 1 << c for a, b, c in made], np.uint64)
    assert told(cross_hashes(new, past, radius, chunk=chunk)) == by_brute_force(new, past, radius)


@pytest.mark.parametrize(("words", "radius"), [(1, 0), (1, 1), (1, 4), (1, 8), (1, 12), (2, 0), (4, 0), (4, 5), (4, 31), (4, 40)])
@pytest.mark.parametrize("memory_mib", [0, 64])
def test_blocks_find_what_brute_force_finds(words: int, radius: int, memory_mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    new, past = related(300, words, radius + 3, seed=radius)
    truth = by_brute_force(new, past, radius)
    monkeypatch.setattr(cross, "BRUTE_NS", 1e6)  # so few are compared faster than arranged
    # Without memory there is an index for each choice of blocks.
    indexes = list(hash_indexes(new.reshape(300, -1), radius, Asking(10**9), memory_mib))
    assert all(index.tables for index in indexes)
    assert (len(indexes) > 1) == (memory_mib == 0 and sum(len(index.tables or ()) for index in indexes) > 1)
    found = [told(index.near(past.reshape(900, -1))) for index in indexes]
    assert sum(map(len, found)) == len(set.union(*found))
    assert set.union(*found) == truth
    assert told(HashIndex(new.reshape(300, -1), radius).near(past.reshape(900, -1))) == truth
    assert told(cross_hashes(new, past, radius, chunk=250)) == truth
    assert len(truth) > 50


def test_parts_hold_every_pair_once() -> None:
    new, past = related(200, 1, 6, seed=1)
    parts = [told(cross_hashes(new, past, 4, chunk=50, part=(number, 3))) for number in range(3)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set.union(*parts) == by_brute_force(new, past, 4)


def test_digests_that_share_a_half_do_not_meet() -> None:
    new = np.array([[7, 1], [7, 2], [8, 3]], np.uint64)
    past = np.array([[7, 2], [7, 3], [8, 3], [8, 3]], np.uint64)
    assert told(cross_hashes(new, past, 0)) == {(1, 0, 0), (2, 2, 0), (2, 3, 0)}


def test_a_million_flat_pictures_on_both_sides_meet_once() -> None:
    flat = np.full(1_000_000, 1 << 63, np.uint64)
    once, others = collapse(flat), collapse(flat)
    (index,) = hash_indexes(once.values_UW, 4, Asking(len(flat)))
    assert told(index.near(others.values_UW)) == {(0, 0, 0)}


def test_vectors_meet_at_the_cosine_of_the_numbers_given() -> None:
    rng = np.random.default_rng(3)
    held = rng.normal(size=(500, 24)).astype(np.float16)
    asked = np.concatenate([held[::5] + rng.normal(scale=0.05, size=(100, 24)), rng.normal(size=(300, 24))]).astype(np.float16)
    held[7], asked[5] = 0, np.inf  # they have no direction
    one, other = (side.astype(np.float64) for side in (held, asked))
    one[7], other[5] = 1, -1
    cosine = (one @ other.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)
    cosine[7], cosine[:, 5] = 0, 0
    met = VectorIndex(held, 0.98, numpy_screen()).near(asked)
    assert set(zip(met.held_M.tolist(), met.asked_M.tolist(), strict=True)) == {
        (int(a), int(b)) for a, b in np.argwhere(cosine >= 0.98)
    }
    assert np.allclose(1 - met.distance_M, cosine[met.held_M, met.asked_M], atol=1e-6)
    assert len(met) > 50


@pytest.mark.parametrize("flat", [0, 400])
def test_equal_vectors_are_one(flat: int) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.integers(-3, 3, (500, 2 if flat else 40)).astype(np.float16)
    vectors[rng.permutation(500)[:flat]] = 7
    values, of = distinct(vectors)
    assert len(values) == len(np.unique(vectors, axis=0))
    assert (values[of] == vectors).all()
    met = VectorIndex(values, 1.0, numpy_screen()).near(np.full((1, vectors.shape[1]), 7, np.float16))
    assert len(met) <= 7  # 1:1, 2:2 and so on of the same direction


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)), max_size=20), st.randoms())
def test_the_nearest_is_the_same_in_whatever_order_it_comes(met: list[tuple[int, int, int, int]], random: object) -> None:
    def taken(rows: list[tuple[int, int, int, int]], size: int) -> list[tuple[int, int, int]]:
        nearest = Nearest(4)
        for start in range(0, len(rows), size):
            at, of, place, distance = np.array(rows[start : start + size]).T
            nearest.add(at, of, place, distance)
        return [
            (int(a), int(b), int(c)) for a, b, c in zip(nearest.of_N, nearest.place_N, nearest.distance_N, strict=True) if a >= 0
        ]

    shuffled = sorted(met, key=lambda _: random.random())  # type: ignore[attr-defined]
    best = {at: min((d, of, place) for a, of, place, d in met if a == at) for at, *_ in met}
    assert taken(met, 20) == taken(shuffled, 3) == [(of, place, d) for _, (d, of, place) in sorted(best.items())]
