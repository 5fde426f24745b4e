"""All pairs within a Hamming radius, against comparing all with all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.dedupe import blocks, hamming
from mmdata.dedupe.hamming import chance_links, collapse, near_hashes, near_values
from mmdata.errors import RunError

Found = list[tuple[int, int, float]]


def all_with_all(hashes: np.ndarray, radius: int) -> Found:
    words = hashes.reshape(len(hashes), -1)
    distance = np.bitwise_count(words[:, None] ^ words[None]).sum(axis=2, dtype=np.int64)
    left, right = np.nonzero(np.triu(distance <= radius, 1))
    return [(int(a), int(b), float(distance[a, b])) for a, b in zip(left, right, strict=True)]


def told(hashes: np.ndarray, radius: int) -> Found:
    pairs = near_hashes(hashes, radius)
    return list(zip(pairs.left_P.tolist(), pairs.right_P.tolist(), pairs.distance_P.tolist(), strict=True))


def planted(rng: np.random.Generator, num: int, words: int, kind: str, most: int) -> np.ndarray:
    """Return hashes, (num, words): random, of few bits, or agreeing in most of them; a third are others with bits flipped."""
    hashes = rng.integers(0, 1 << 64, (num, words), dtype=np.uint64)
    if kind == "few":
        hashes &= rng.integers(0, 1 << 64, (num, words), dtype=np.uint64) & rng.integers(
            0, 1 << 64, (num, words), dtype=np.uint64
        )
        hashes &= np.uint64(0xFF00FF)
    elif kind == "alike":
        hashes = (hashes & np.uint64(0x3FF)) | np.uint64(0xABCD << 40)
    copies = num // 3
    for place in range(copies):
        source = hashes[copies + int(rng.integers(num - copies))].copy()
        for bit in rng.choice(64 * words, int(rng.integers(0, most + 2)), replace=False):
            source[bit // 64] ^= np.uint64(1 << int(bit % 64))
        hashes[place] = source
    return hashes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 1 << 30), st.integers(2, 200), st.sampled_from(["random", "few", "alike"]))
def test_64_bits_at_every_radius(radius: int, seed: int, num: int, kind: str) -> None:
    hashes = planted(np.random.default_rng(seed), num, 1, kind, radius)[:, 0]
    assert told(hashes, radius) == all_with_all(hashes, radius)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(0, 1 << 30), st.integers(2, 120), st.sampled_from(["random", "few", "alike"]))
def test_256_bits_at_every_radius(radius: int, seed: int, num: int, kind: str) -> None:
    hashes = planted(np.random.default_rng(seed), num, 4, kind, radius)
    assert told(hashes, radius) == all_with_all(hashes, radius)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1 << 30), st.integers(2, 400), st.sampled_from([1, 4]), st.integers(1, 5))
def test_parts_together_hold_each_pair_once(radius: int, seed: int, num: int, words: int, parts: int) -> None:
    values = collapse(planted(np.random.default_rng(seed), num, words, "random", radius)).values_UW
    found = [near_values(values, radius, part=(part, parts)) for part in range(parts)]
    together = sorted(pair for part in found for pair in zip(part.left_P.tolist(), part.right_P.tolist(), strict=True))
    assert together == [(left, right) for left, right, _ in all_with_all(values, radius)]


@pytest.mark.parametrize("radius", [1, 2, 4, 7])
def test_blocks_find_what_comparing_all_finds(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(radius)
    hashes = np.concatenate([planted(rng, 500, 1, kind, radius)[:, 0] for kind in ("random", "alike")])
    expected = all_with_all(hashes, radius)
    assert len(expected) > 300
    monkeypatch.setattr(blocks, "BRUTE_NS", 100.0)  # at this size comparing all would be chosen
    for heavy in (2048, 20):  # buckets that are scanned, and buckets that are solved anew
        for few in (10, 1, 1000):  # words compared as they lie while many have a candidate, never, and to the end
            monkeypatch.setattr(blocks, "_HEAVY", heavy)
            monkeypatch.setattr(blocks, "_FEW", few)
            assert told(hashes, radius) == expected


def test_words_of_long_hashes_find_what_comparing_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = planted(np.random.default_rng(5), 500, 4, "random", 34)
    expected = all_with_all(hashes, 31)
    assert len(expected) > 100
    monkeypatch.setattr(hamming, "BRUTE_NS", 1e3)
    assert told(hashes, 31) == expected
    assert told(hashes, 2) == all_with_all(hashes, 2)  # a radius below the number of words leaves one of them out


def test_it_is_symmetric_order_free_and_the_same_again() -> None:
    rng = np.random.default_rng(3)
    hashes = planted(rng, 800, 1, "few", 3)[:, 0]
    order = rng.permutation(len(hashes))
    first, again = near_hashes(hashes, 3), near_hashes(hashes[order], 3)
    sides = np.sort(np.stack([order[again.left_P], order[again.right_P]], 1), axis=1)
    by_place = np.lexsort((sides[:, 1], sides[:, 0]))
    assert np.array_equal(sides[by_place], np.stack([first.left_P, first.right_P], 1))
    assert np.array_equal(again.distance_P[by_place], first.distance_P)
    assert near_hashes(hashes, 3).left_P.tobytes() == first.left_P.tobytes()


def test_a_hundred_thousand_flat_pictures_take_no_longer_than_others() -> None:
    hashes = np.concatenate([np.full(100_000, 1 << 63, np.uint64), np.arange(2_000, dtype=np.uint64) << np.uint64(40)])
    values = hamming.collapse(hashes).values_UW
    assert len(values) == 2_001
    pairs = hamming.near_values(values, 2, 10_000_000)
    low = (values[pairs.left_P] ^ values[pairs.right_P])[:, 0]
    assert np.array_equal(np.bitwise_count(low), pairs.distance_P.astype(int))
    # The numbers 0..1,999 form a cube cut off at the top: counted by flipping one bit, or two, of each.
    numbers = np.arange(2_000)
    flips = [1 << a for a in range(11)] + [(1 << a) | (1 << b) for a in range(11) for b in range(a)]
    near = sum(int(((numbers ^ flip) < 2_000).sum()) for flip in flips) // 2
    assert len(pairs) == near + 12  # the flat one is near 0 and the powers of two
    with pytest.raises(RunError, match=r"more than 1,000 pairs of hashes are within 2 bits[\s\S]*hint: take a smaller radius"):
        hamming.near_values(values, 2, 1000)


def test_chance_links_counts_the_ball() -> None:
    assert chance_links(2, 64, 64) == 1.0
    assert chance_links(1 + 2**20, 1, 64) == pytest.approx(2**20 * 65 / 2**64)
    assert chance_links(10**8, 40, 256) < 1e-20
