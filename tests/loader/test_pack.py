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


def test_packing_chooses_the_best_fit() -> None:
    # From the longest on: 70 opens a row, 60 another; 40 fits beside 60 alone, 30 then beside 70.
    assert rows_of([60, 70, 30, 40], 100) == [[1, 2], [0, 3]]


@pytest.mark.parametrize("num", [65_536, 5_000])
def test_padding_is_below_half_a_percent(num: int) -> None:
    lengths = np.clip(keyed(0, "lengths").lognormal(6.3, 0.8, num), 8, 4096).astype(int)
    _, starts = pack(lengths, 4096)
    assert 1 - lengths.sum() / ((len(starts) - 1) * 4096) < 0.005


def test_rows_come_in_the_order_of_their_samples() -> None:
    lengths = keyed(1).integers(1, 400, 20_000)
    order, starts = pack(lengths, 1000)
    when = np.maximum.reduceat(order, starts[:-1])  # when a row's last sample was drawn
    away = np.abs(np.argsort(np.argsort(when)) - np.arange(len(when)))
    assert np.quantile(away, 0.99) < 500  # of 4,000 rows
