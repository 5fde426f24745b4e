"""Fates: the first verdict counts, documents go whole where the rule says so, and rows are conserved."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.engine.ledger import account, check_law, funnel
from mmdata.engine.state import CHILD_BITS, Documents, State
from mmdata.errors import RunError
from mmdata.schema import ROW, VERDICT_FIELDS


def verdicts(reasons: dict[int, str | None]) -> pa.Table:
    num = len(reasons)
    columns = [list(reasons), list(reasons.values()), ["k"] * num, [0] * num, [0.5] * num]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, VERDICT_FIELDS, strict=True)], pa.schema(VERDICT_FIELDS))


def test_a_fate_is_the_first_verdict() -> None:
    state = State.start(0, np.arange(4), [])
    state.drop(verdicts({1: "small", 2: None}), 0)
    state.drop(verdicts({1: "blurred", 3: "blurred"}), 1)
    assert state.table().column("reason").to_pylist() == [None, "small", None, "blurred"]
    assert state.alive.tolist() == [0, 2]
    assert account(state)["dropped"] == {"blurred": 1, "small": 1}


# A document of text, image, text; then a pair.
DOCUMENT = Documents(np.array([0, 0, 0, -1]), np.array([False, True, False, True]))


@pytest.mark.parametrize(
    ("lost", "whole", "left"),
    [
        (0, False, [1, 2, 3]),  # one text of two: the rest stays
        (1, False, [3]),  # the only image: nothing to see is left
        (0, True, [3]),  # scope sample: all go
        (3, False, [0, 1, 2]),  # a pair is a row
    ],
)
def test_documents(lost: int, whole: bool, left: list[int]) -> None:
    state = State.start(0, np.arange(4), [])
    state.drop_incomplete(state.drop(verdicts({lost: "x"}), 0), DOCUMENT, 0, whole)
    assert state.alive.tolist() == left
    account(state)


def test_a_split_closes_its_rows() -> None:
    state = State.start(0, np.arange(3), [])
    state.drop(verdicts({1: "x"}), 0)
    children = np.array([0, 1, 2 << CHILD_BITS])
    after = state.split(children, 1)
    counts = account(after)
    assert (counts["rows_in"], counts["made_by_splits"], counts["split"], counts["kept"]) == (3, 3, 2, 3)


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8), st.permutations(["a", "b", "c", "unused"]))
def test_the_bytes_of_fates_do_not_depend_on_how_reasons_were_coded(reasons: list[str], names: list[str]) -> None:
    def fates(coded: pa.Array) -> bytes:
        state = State.start(0, np.arange(8), [])
        table = verdicts(dict(enumerate(reasons)))
        state.drop(table.set_column(1, "reason", coded), 0)
        return state.to_bytes()

    places = pa.array([names.index(reason) for reason in reasons], pa.int32())
    assert fates(pa.DictionaryArray.from_arrays(places, pa.array(names))) == fates(pa.array(reasons))


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 19), st.sampled_from(["a", "b", None])), max_size=30),
    st.booleans(),
)
def test_rows_are_conserved_and_survive_a_file(num: int, drops: list[tuple[int, str | None]], split: bool) -> None:
    state = State.start(0, np.arange(num), [])
    for stage, (row, reason) in enumerate(drops):
        if row < num:
            state.drop(verdicts({row: reason}), stage)
    if split:
        state = state.split(np.concatenate([(state.alive << CHILD_BITS) + n for n in range(2)]), 99)
    again = State.from_bytes(state.to_bytes())
    assert again.table().equals(state.table())
    assert account(again) == account(state)
    assert funnel([account(state)])["rows_in"] == num


def test_a_lost_row_is_an_error() -> None:
    with pytest.raises(RunError, match="rows are not conserved: 3 came in or were made, 2 are accounted for"):
        check_law({"rows_in": 3, "made_by_splits": 0, "kept": 1, "dropped": {"x": 1}, "split": 0})


def test_a_fate_names_its_keeper_and_value() -> None:
    state = State.start(0, np.arange(2), [])
    state.drop(verdicts({1: "duplicate"}), 0)
    row = state.table().to_pylist()[1]
    assert (row[ROW], row["keeper_id"], row["keeper_position"], row["value"]) == (1, "k", 0, 0.5)
