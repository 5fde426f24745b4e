"""Token shares are exact at any draw; the weights of the future may change, those of the past may not."""

from typing import cast

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmdata.errors import ConfigError
from mmdata.loader import Mixture, Plan, Source, mixture_of
from mmdata.loader.plan import Window
from mmdata.loader.source import Part
from mmdata.shards import Corpus


def source(name: str, lengths: list[int], epochs: float | None = None) -> Source:
    nothing = cast(Corpus, None)  # planning looks at lengths alone
    most = None if epochs is None else round(epochs * len(lengths))
    return Source(name, (Part(nothing, 0, len(lengths)),), np.array(lengths), most, len(name), "samples", 1024)


def plan(sources: list[Source], weights: object, window: int = 500, batch_size: int = 4, row_tokens: int = 100) -> Plan:
    mixture = mixture_of([one.name for one in sources], weights, [one.size for one in sources])  # type: ignore[arg-type]
    return Plan(tuple(sources), mixture, batch_size, row_tokens, window)


def drawn(of: Plan, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return source and tokens of every draw, in the order of drawing."""
    start, found = of.first, []
    for _ in range(windows):
        window = of.window(start)
        found.append(window)
        if window.end is None:
            break
        start = window.end
    return np.concatenate([w.source_D for w in found]), np.concatenate([w.tokens_D for w in found])


lengths_lists = st.lists(st.integers(1, 100), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(lengths_lists, min_size=2, max_size=5), st.data())
def test_shares_are_exact_after_any_number_of_draws(lengths: list[list[int]], data: st.DataObject) -> None:
    sources = [source(f"s{number}", some) for number, some in enumerate(lengths)]
    weights = [data.draw(st.floats(0.01, 1.0)) for _ in sources]
    which, tokens = drawn(plan(sources, {s.name: w for s, w in zip(sources, weights, strict=True)}), 2)
    longest = max(max(some) for some in lengths)
    total = np.cumsum(tokens)
    for number, weight in enumerate(weights):
        mine = np.cumsum(np.where(which == number, tokens, 0))
        assert np.abs(mine - total * (weight / sum(weights))).max() <= longest * len(sources) + 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(lengths_lists, st.floats(0.01, 1.0)), min_size=2, max_size=5))
@example([([33], 1.0), ([34], 1.0), ([35], 1.0)])  # three fit into a row in one way alone
@example([([29], 0.5), ([64], 0.99), ([53], 0.5)])
@example([([51], 0.25), ([52], 0.5), ([52], 0.25), ([62], 1.0), ([22, 53], 1.0)])  # most rows are of one source
@example([([56, 78], 0.01), ([60, 52], 1.0), ([58, 59, 58], 1.0), ([34], 0.5)])
def test_shares_are_kept_after_any_packed_row(given_sources: list[tuple[list[int], float]]) -> None:
    sources = [source(f"s{number}", some) for number, (some, _) in enumerate(given_sources)]
    weights = [weight for _, weight in given_sources]
    of = plan(sources, {s.name: w for s, w in zip(sources, weights, strict=True)})
    first = of.window(of.first)
    assert first.end is not None
    tokens_RS = np.concatenate([by_row(window, len(sources)) for window in (first, of.window(first.end))])
    away_RS = np.cumsum(tokens_RS - tokens_RS.sum(1, keepdims=True) * np.asarray(weights) / sum(weights), axis=0)
    assert np.abs(away_RS).max() <= 100 * len(sources)  # a row has 100 tokens


def by_row(window: Window, num_sources: int) -> np.ndarray:
    """Return the tokens of each source in each row, (R, S)."""
    of_source_DS = (window.source_D[:, None] == np.arange(num_sources)) * window.tokens_D[:, None]
    return np.add.reduceat(of_source_DS[window.order_D], window.starts_R[:-1])


def test_weights_that_change_hold_for_packed_rows_too() -> None:
    lengths = [7, 13, 29, 41, 3]
    weights = [(0, {"a": 0.9, "b": 0.1}), (10, {"a": 0.1, "b": 0.9})]
    tokens_RS = by_row((of := plan([source("a", lengths), source("b", lengths)], weights)).window(of.first), 2)
    before, after = (part.sum(0) / part.sum() for part in (tokens_RS[:40], tokens_RS[40:80]))
    assert before[0] == pytest.approx(0.9, abs=0.04)
    assert after[0] == pytest.approx(0.1, abs=0.04)


def test_without_weights_each_source_has_the_share_of_its_size() -> None:
    which, _ = drawn(plan([source("a", [10] * 30), source("b", [10] * 10)], None, window=400), 1)
    assert np.bincount(which).tolist() == [300, 100]


def test_weights_change_at_their_step_to_the_row() -> None:
    # Rows of 100 tokens hold 10 samples each, so 4 rows are 40 draws.
    weights = [(0, {"a": 1.0, "b": 0.0}), (5, {"a": 0.5, "b": 0.5})]
    of = plan([source("a", [10] * 7), source("b", [10] * 9)], weights, window=300)
    which, _ = drawn(of, 2)
    assert which[:200].tolist() == [0] * 200
    assert np.bincount(which[200:600]).tolist() == [200, 200]


def test_a_source_that_is_exhausted_leaves_its_share_to_the_others() -> None:
    of = plan([source("a", [10] * 8, epochs=2), source("b", [10] * 100, epochs=1)], {"a": 0.5, "b": 0.5})
    which, _ = drawn(of, 3)
    assert np.bincount(which).tolist() == [16, 100]
    assert set(which[32:]) == {1}


@pytest.mark.parametrize(
    ("given_weights", "said"),
    [
        ({"a": 1, "bb": 1}, "names `bb`, which no corpus is called"),
        ({"a": -1}, "gives `a` the weight -1"),
        ({"a": float("nan")}, "gives `a` the weight nan"),
        ({"a": 0}, "gives no source a weight above 0"),
        ([(1, {"a": 1})], "has no weights for step 0"),
        ([(0, {"a": 1}), (5, {"a": 1}), (5, {"a": 2})], "steps of the mixture do not rise: 0, 5, 5"),
    ],
)
def test_wrong_weights_are_named(given_weights: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mixture_of(["a", "b"], given_weights, [1, 1])  # type: ignore[arg-type]


def test_shares_add_up_whatever_the_weights() -> None:
    mixture = Mixture(("a", "b", "c"), ((0, (1.0, 1.0, 1.0)),))
    assert sum(mixture.at(0, [True, True, True])) == 1_000_000_000
    assert mixture.at(0, [False, True, False]) == [0, 1_000_000_000, 0]
