"""Which rows stay, and what the others are copies of."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdata.dedupe.alike import Items, Things, judge
from mmdata.dedupe.groups import keepers, ranks
from mmdata.dedupe.pairs import Pairs, in_order
from mmdata.schema import PARTITION, ROW

Edges = list[tuple[int, int]]


def pairs_of(edges: Edges) -> Pairs:
    left, right = np.array(edges, np.int64).reshape(-1, 2).T
    return in_order(left, right, np.abs(left - right).astype(np.float32))


def rows_of(num: int, **columns: list[object]) -> pa.Table:
    base = {PARTITION: [place % 3 for place in range(num)], ROW: [place // 3 for place in range(num)]}
    return pa.table(
        base | {"sample_id": [f"{place:032x}" for place in range(num)], "position": pa.array([0] * num, pa.int32())} | columns
    )


def one_by_one(edges: Edges, rank: list[int]) -> list[int]:
    near = {place: {b for a, b in [*edges, *((b, a) for a, b in edges)] if a == place} - {place} for place in range(len(rank))}
    keeper: dict[int, int] = {}
    for place in sorted(near, key=rank.__getitem__):
        if place not in keeper:
            keeper[place] = place
            for other in near[place]:
                keeper.setdefault(other, place)
    return [keeper[place] for place in range(len(rank))]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=80), st.permutations(range(31)))
def test_it_is_what_taking_rows_one_by_one_gives(edges: Edges, rank: list[int]) -> None:
    pairs = pairs_of(edges)
    keeper, distance = keepers(pairs, np.array(rank))
    assert keeper.tolist() == one_by_one(edges, rank)
    assert (keeper[keeper] == keeper).all(), "a keeper was alive when it judged"
    near = {(int(a), int(b)) for a, b in zip(pairs.left_P, pairs.right_P, strict=True)}
    for place, kept in enumerate(keeper.tolist()):
        assert place == kept or (min(place, kept), max(place, kept)) in near, "a dropped row is near its keeper"
        assert distance[place] == abs(place - kept)
    both = {place for place in range(31) if keeper[place] == place}
    assert not any(a in both and b in both for a, b in near), "the same again drops nobody"


def test_a_chain_ranked_from_end_to_end_keeps_every_second() -> None:
    num = 1001
    keeper, _ = keepers(pairs_of([(place, place + 1) for place in range(num - 1)]), np.arange(num))
    assert keeper.tolist() == [place - place % 2 for place in range(num)]


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        (["area"], 1), (["clip_score"], 2), (["lowest(clip_score)"], 1), (["caption_length"], 3), (["earliest"], 0), ([], 0),
        (["same", "caption_length"], 3), (["same", "clip_score", "area"], 2),
    ],
)  # fmt: skip
def test_rules_say_who_stays(rules: list[str], stays: int) -> None:
    rows = rows_of(
        4, width=[1, 9, 2, None], height=[1, 9, 2, 100], clip_score=[float("nan"), 0.1, 0.4, None],
        text=["a", "bb", None, "cccc"], same=[7, 7, 7, 7],
    )  # fmt: skip
    order = np.array([3, 1, 0, 2])
    pairs = pairs_of([(a, b) for a in range(4) for b in range(a)])
    for table in (rows, rows.take(pa.array(order))):
        places = np.arange(table.num_rows)
        verdicts = judge(table, Things(places, ranks(table, rules)), Items(places, places), pairs)
        assert verdicts.num_rows == 3
        assert set(verdicts.column("keeper_id").to_pylist()) == {f"{stays:032x}"}
        assert set(verdicts.column("reason").to_pylist()) == {"near_duplicate"}
        assert verdicts.select([PARTITION, ROW]).to_pylist() == sorted(
            verdicts.select([PARTITION, ROW]).to_pylist(), key=lambda row: (row[PARTITION], row[ROW])
        )
