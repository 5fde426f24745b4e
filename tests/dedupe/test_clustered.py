"""Clustered neighbours: nothing is found that is not there, nothing is missed at border 1, and the recall told is true."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.dedupe.clustered import Clustering, centres_of, near_clustered, stays_of
from mmdata.dedupe.cosine import Unit, best_screen, near_vectors
from mmdata.dedupe.pairs import Pairs
from mmdata.dedupe.semdedup import Keep, semdedup

NUMPY = best_screen("numpy")


def scattered(num: int, dim: int, seed: int, noise: float = 0.3) -> np.ndarray:
    """Return vectors of no friendly clusters of which half have a neighbour."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num, dim))
    vectors[1::2] = vectors[: num // 2 * 2 : 2] + noise * rng.normal(size=(num // 2, dim))
    return vectors.astype(np.float32)


def pairs_of(found: Pairs) -> set[tuple[int, int]]:
    return set(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True))


@settings(max_examples=15, deadline=None)
@given(num=st.integers(0, 300), clusters=st.integers(1, 20), seed=st.integers(0, 99), threshold=st.sampled_from([0.7, 0.9, 0.99]))
def test_with_a_whole_border_nothing_is_missed(num: int, clusters: int, seed: int, threshold: float) -> None:
    vectors = scattered(num, 8, seed)
    looked = near_clustered(vectors, threshold, Clustering(clusters, border=1.0, visits=20, seed=seed), NUMPY)
    assert pairs_of(looked.pairs) == pairs_of(near_vectors(vectors, threshold, NUMPY))
    assert looked.recall in (None, 1.0)


def test_the_recall_told_is_the_share_found() -> None:
    vectors = scattered(400, 16, 1, noise=0.45)
    exact = pairs_of(near_vectors(vectors, 0.85, NUMPY))
    looked = near_clustered(vectors, 0.85, Clustering(40, border=0.0, checked=400), NUMPY)
    assert pairs_of(looked.pairs) < exact
    assert looked.recall == pytest.approx(len(looked.pairs) / len(exact))
    assert looked.recall is not None
    assert 0.2 < looked.recall < 0.98
    assert str(looked).endswith(f"measured on 400 vectors: recall {looked.recall:.4f} of {len(exact)} pairs")


def test_one_seed_gives_one_clustering() -> None:
    unit = Unit(scattered(500, 8, 2))
    first, again, other = centres_of(unit, 12, 5), centres_of(unit, 12, 5), centres_of(unit, 12, 6)
    assert (first == again).all()
    assert not np.array_equal(first, other)
    stays = stays_of(unit, first)
    assert sum(len(members) for members in stays.members(guests=False)) == 500
    assert stays.cosine_S == pytest.approx((unit.rows(stays.vector_S) * first[stays.cluster_S]).sum(axis=1), abs=1e-6)


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_semdedup_drops_what_the_paper_says(keep: Keep) -> None:
    """One cluster, worked by hand: in the order of the rule each whose largest cosine with those before is above 1 - epsilon."""
    vectors = scattered(60, 6, 3, noise=0.2)
    keeper, distance = semdedup(vectors, 0.1, 1, keep, seed=4)
    lines = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    to_centre = lines @ centres_of(Unit(vectors), 1, 4)[0]
    orders = {"hard": np.argsort(to_centre), "easy": np.argsort(-to_centre)}
    if keep in orders:
        order = orders[keep]
        goes = [place for at, place in enumerate(order) if at and (lines[order[:at]] @ lines[place]).max() > 0.9]
        assert sorted(goes) == np.flatnonzero(keeper != np.arange(60)).tolist()
    assert 10 < (keeper != np.arange(60)).sum() < 50
    assert (keeper[keeper] == keeper).all()
    assert distance == pytest.approx(1 - (lines * lines[keeper]).sum(axis=1), abs=1e-6)
