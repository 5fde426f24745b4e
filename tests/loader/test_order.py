"""The order of an epoch is a permutation that follows from a key alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.loader import places
from mmdata.loader.order import SPREAD, Shuffle


@pytest.mark.parametrize("shuffle", ["samples", "blocks", "none"])
@given(num=st.integers(1, 400), key=st.integers(0, 2**128 - 1), block=st.integers(1, 40))
def test_every_place_once_an_epoch(shuffle: Shuffle, num: int, key: int, block: int) -> None:
    found = places(np.arange(3 * num), num, key, shuffle, block).reshape(3, num)
    assert (np.sort(found, axis=1) == np.arange(num)).all()


@given(num=st.integers(1, 300), first=st.integers(0, 2000), key=st.integers(0, 2**64))
def test_what_is_drawn_does_not_depend_on_what_was_asked_before(num: int, first: int, key: int) -> None:
    whole = places(np.arange(first + 50), num, key, "blocks", 7)
    assert np.array_equal(places(np.arange(first, first + 50), num, key, "blocks", 7), whole[first:])


def test_the_order_is_the_same_for_ever() -> None:
    # A change here breaks every saved state: it needs a new version of the state.
    assert places(np.arange(12), 12, 1).tolist() == [6, 3, 8, 11, 7, 2, 4, 0, 10, 5, 1, 9]
    assert places(np.arange(12), 12, 1, "blocks", 2).tolist() == [9, 1, 8, 6, 5, 4, 11, 7, 2, 3, 10, 0]


def test_orders_of_few_places_are_all_there_and_equally_often() -> None:
    num, epochs = 4, 24_000
    found = Counter(map(tuple, places(np.arange(num * epochs), num, 7).reshape(epochs, num).tolist()))
    assert len(found) == 24
    chi2 = sum((count - 1000) ** 2 / 1000 for count in found.values())
    assert chi2 < 60  # 23 degrees of freedom: passed by chance once in 30,000 for a fair order


def test_a_large_order_leaves_no_trace_of_neighbours() -> None:
    num = 1_000_003
    found = places(np.arange(num), num, 3)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(found, np.arange(num))[0, 1]) < 0.01
    assert np.mean(np.abs(np.diff(found)) < 10) < 1e-4


def test_blocks_keep_few_neighbourhoods_open() -> None:
    num, block = 10_000, 20
    found = places(np.arange(num), num, 5, "blocks", block)
    groups = (
        found.reshape(-1, block * SPREAD) if num % (block * SPREAD) == 0 else found[: num // (block * SPREAD) * block * SPREAD]
    )
    for group in groups.reshape(-1, block * SPREAD):
        assert len(set((group // block).tolist())) == SPREAD
    assert len(set((found[: block * SPREAD] // block).tolist())) == SPREAD
    assert abs(np.corrcoef(found, np.arange(num))[0, 1]) < 0.2
