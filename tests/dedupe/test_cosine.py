"""Exact cosine neighbours: what comes out is what brute force in float64 says, by every screen, tile and order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.dedupe.cosine import Screen, best_screen, near_vectors, tiles, torch_screen
from mmdata.errors import RunError

NUMPY = best_screen("numpy")
SMALL = Screen("small tiles", 7, 5, NUMPY.load, NUMPY.hits, NUMPY.error, NUMPY.error_D)


def planted(num: int, dim: int, seed: int) -> np.ndarray:
    """Return vectors of any length of which about half have a neighbour, some an equal one."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num, dim))
    for row in range(1, num, 2):
        vectors[row] = vectors[row - 1] * rng.uniform(0.5, 2) + rng.normal(size=dim) * rng.choice([0, 0.05, 0.3, 0.6])
    return vectors.astype(np.float32)


def brute(vectors: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    """Return the pairs, one by one."""
    lines = vectors.astype(np.float64)
    return {
        (one, other)
        for one in range(len(lines))
        for other in range(one + 1, len(lines))
        if lines[one] @ lines[other] >= (threshold - 1e-12) * np.sqrt((lines[one] @ lines[one]) * (lines[other] @ lines[other]))
    }


@settings(max_examples=25, deadline=None)
@given(num=st.integers(0, 40), dim=st.integers(1, 24), seed=st.integers(0, 999), threshold=st.sampled_from([0.3, 0.8, 0.95, 1.0]))
def test_the_pairs_are_those_of_brute_force(num: int, dim: int, seed: int, threshold: float) -> None:
    vectors = planted(num, dim, seed)
    for screen in (NUMPY, SMALL):
        found = near_vectors(vectors, threshold, screen)
        assert set(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)) == brute(vectors, threshold)
        assert (np.lexsort((found.right_P, found.left_P)) == np.arange(len(found))).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_order_of_rows_changes_no_pair_and_no_distance(seed: int) -> None:
    vectors = planted(40, 16, seed)
    order = np.random.default_rng(seed).permutation(40)
    first, second = near_vectors(vectors, 0.9, SMALL), near_vectors(vectors[order], 0.9, SMALL)
    there = {
        (*sorted((int(order[left]), int(order[right]))), float(distance))
        for left, right, distance in zip(second.left_P, second.right_P, second.distance_P, strict=True)
    }
    assert there == set(zip(first.left_P.tolist(), first.right_P.tolist(), first.distance_P.tolist(), strict=True))


def test_a_bfloat16_screen_gives_the_same_pairs() -> None:
    vectors = planted(600, 64, 3)
    screened, plain = near_vectors(vectors, 0.9, torch_screen("cpu")), near_vectors(vectors, 0.9, NUMPY)
    assert len(plain) > 100
    for name in ("left_P", "right_P", "distance_P"):
        assert (getattr(screened, name) == getattr(plain, name)).all()


def test_tiles_may_be_shared_out_and_vectors_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", planted(60, 16, 5).astype(np.float16))
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    whole = near_vectors(vectors, 0.9, SMALL)
    work = tiles(60, SMALL)
    parts = [near_vectors(vectors, 0.9, SMALL, only=work[start::3], memory_mib=0) for start in range(3)]
    assert len(whole) > 10
    assert sum(len(part) for part in parts) == len(whole)
    assert {tuple(pair) for part in parts for pair in zip(part.left_P, part.right_P, strict=True)} == set(
        zip(whole.left_P, whole.right_P, strict=True)
    )


def test_a_vector_without_direction_is_near_nothing() -> None:
    vectors = np.array([[0, 0], [0, 0], [np.nan, 1], [np.nan, 1], [np.inf, 0], [np.inf, 0], [1, 0], [3, 0]], np.float32)
    found = near_vectors(vectors, 0.5, NUMPY)
    assert (found.left_P.tolist(), found.right_P.tolist(), found.distance_P.tolist()) == ([6], [7], [0.0])


def test_too_many_pairs_and_thresholds_that_say_nothing_are_refused() -> None:
    with pytest.raises(RunError, match=r"more than 10 pairs have a cosine of at least 0\.9"):
        near_vectors(np.ones((20, 4), np.float32), 0.9, NUMPY, max_pairs=10)
    with pytest.raises(RunError, match=r"a threshold of 1\.5 is no cosine"):
        near_vectors(np.ones((2, 4), np.float32), 1.5, NUMPY)
