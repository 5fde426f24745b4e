"""Packing loses nothing, overfills nothing, and leaves little empty."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.loader import keyed, pack


def rows_of(lengths: list[int], row_tokens: int, **options: int) -> list[list[int]]:
    order, starts = pack(np.array(lengths), row_tokens, **options)
    return [order[first:last].tolist() for first, last in pairwise(starts)]


@given(st.lists(st.integers(1, 100), max_size=400), st.integers(1, 64))
def test_packing_loses_nothing_and_overfills_nothing(lengths: list[int], pool: int) -> None:
    rows = rows_of(lengths, 100, pool=pool)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(rows)
    assert all(sum(lengths[place] for place in row) <= 100 for row in rows)


def test_what_fills_a_row_is_chosen() -> None:
    # 60 came first; of those that wait, 40 is the longest that fits. Then 70, and 30 beside it.
    assert rows_of([60, 70, 30, 40], 100) == [[0, 3], [1, 2]]
    # Behind 50 and 20 there is room for nothing; 45 in the place of 20 leaves less of it empty.
    assert rows_of([50, 20, 45, 35], 100) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("num", [65_536, 5_000])
def test_padding_is_below_half_a_percent(num: int) -> None:
    lengths = np.clip(keyed(0, "lengths").lognormal(6.3, 0.8, num), 8, 4096).astype(int)
    _, starts = pack(lengths, 4096)
    assert 1 - lengths.sum() / ((len(starts) - 1) * 4096) < 0.005


def test_samples_of_nearly_one_size_fill_their_rows_too() -> None:
    lengths = keyed(2).integers(200, 280, 20_000)
    _, starts = pack(lengths, 4096)
    assert 1 - lengths.sum() / ((len(starts) - 1) * 4096) < 0.005


def test_rows_come_in_the_order_of_their_samples() -> None:
    lengths = keyed(1).integers(1, 400, 20_000)
    order, starts = pack(lengths, 1000)
    when = np.maximum.reduceat(order, starts[:-1])  # when a row's last sample was drawn
    away = np.abs(np.argsort(np.argsort(when)) - np.arange(len(when)))
    assert np.quantile(away, 0.99) < 500  # of 4,000 rows
