"""The order of everything follows from lengths and a seed; a state is a few numbers."""

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mmdata.errors import ConfigError, RunError
from mmdata.loader import Loader, RowPlan, keyed, pack, read_sample
from mmdata.shards import Corpus, open_corpus
from tests.corpus import make_corpus
from tests.fire.damage import edit_index


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_corpus(make_corpus(tmp_path_factory.mktemp("corpus"), num=40))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=300))
def test_packing_loses_nothing_and_overfills_nothing(lengths: list[int]) -> None:
    rows = pack(np.array(lengths), 100)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= 100 for row in rows)


def test_packing_chooses_the_best_fit() -> None:
    # 60 opens a row, 70 another; 30 fits best beside 70; 40 beside 60.
    assert pack(np.array([60, 70, 30, 40]), 100) == [[0, 3], [1, 2]]


def test_padding_is_small() -> None:
    lengths = np.clip(keyed(0, "lengths").lognormal(5.5, 0.8, 20_000), 8, 4096).astype(int)
    rows = pack(lengths, 4096)
    assert 1 - lengths.sum() / (len(rows) * 4096) < 0.01


def test_every_sample_once_an_epoch() -> None:
    plan = RowPlan(np.full(10, 3), np.arange(100, 110), 9, seed=1, window=64)
    draws = [draw for window in range(3) for row in plan.rows(window) for draw in row]
    for epoch in range(19):
        mine = [sample for when, sample in draws if when == epoch]
        assert sorted(mine) == list(range(100, 110))
    orders = {tuple(plan.samples_N[plan.draws(0)[1][plan.draws(0)[0] == epoch]]) for epoch in range(5)}
    assert len(orders) == 5


def test_a_sample_that_fits_no_row_is_named() -> None:
    with pytest.raises(ConfigError, match="sample 7 has 20 tokens, a row has 10"):
        RowPlan(np.array([3, 20]), np.array([5, 7]), 10, seed=0)


def test_keyed_generators_depend_on_the_key_alone() -> None:
    assert keyed(0, 1, "a").random() == keyed(0, 1, "a").random()
    assert keyed(0, 1, "a").random() != keyed(0, 1, "b").random()


def loader(corpus: Corpus, threads: int = 1, seed: int = 0, config: str = "c") -> Loader[str]:
    plan = RowPlan(np.full(40, 10), np.arange(40), 35, seed, window=50)
    return Loader(corpus, plan, lambda sample, epoch: f"{sample.sample_id}:{epoch}", config=config, threads=threads)


def stream(source: Loader[str], num: int) -> list[tuple[str, ...]]:
    return [next(source).items for _ in range(num)]


def test_the_stream_does_not_depend_on_threads(corpus: Corpus) -> None:
    assert stream(loader(corpus), 60) == stream(loader(corpus, threads=4), 60)


@pytest.mark.parametrize("stop", [0, 1, 7, 16, 17, 18, 40])
def test_a_restored_stream_is_the_same(corpus: Corpus, stop: int) -> None:
    first = loader(corpus)
    whole = stream(first, 60)
    half = loader(corpus)
    stream(half, stop)
    state = half.state()
    again = loader(corpus, threads=3)
    again.restore(state)
    assert stream(again, 60 - stop) == whole[stop:]


def test_a_state_of_another_configuration_is_refused(corpus: Corpus) -> None:
    state = loader(corpus).state()
    with pytest.raises(ConfigError, match="another corpus or configuration"):
        loader(corpus, config="other").restore(state)
    with pytest.raises(ConfigError, match="another corpus or configuration"):
        loader(corpus, seed=1).restore(state)


def break_shard(url: str, byte: int) -> str:
    """Change one byte of the first shard and return the shard's name."""
    shard = Path(url) / open_corpus(url).shards[0]
    data = bytearray(shard.read_bytes())
    data[byte] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    return shard.name


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    url = make_corpus(tmp_path, num=6)
    name = break_shard(url, 600)
    with pytest.raises(RunError, match=rf"{name}: sample 0 at byte 0 is not what was written"):
        open_corpus(url).read(0)


def test_a_row_that_cannot_be_read_stays_the_next_one(tmp_path: Path) -> None:
    url = make_corpus(tmp_path, num=40)
    whole = loader(open_corpus(url))
    first, state = next(whole).items, whole.state()
    name = break_shard(url, 600)
    damaged = loader(open_corpus(url))
    rows, errors = [], []
    for _ in range(40):
        try:
            rows.append(next(damaged).items)
        except RunError as error:
            errors.append(str(error))
    assert rows[0] == first
    assert len(set(errors)) == 1
    assert len(rows) + len(errors) == 40
    assert f"{name}: sample 0 at byte 0" in errors[0]
    assert damaged.row == len(rows)
    damaged.restore(state)
    assert damaged.row == 1


def test_a_sample_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    url = make_corpus(tmp_path, num=6)
    name = break_shard(url, open_corpus(url).blocks_of(0)[0]["offset"])
    length = int(open_corpus(url).samples[0]["length"]) * 512
    xxh3 = xxhash.xxh3_64_intdigest((Path(url) / name).read_bytes()[:length])
    edit_index(Path(url), "samples", lambda samples: samples["xxh3"].__setitem__(0, xxh3), sealed=True)
    with pytest.raises(RunError, match=rf"{name}: sample 0 at byte 0 cannot be decoded: not an image of a known format"):
        read_sample(open_corpus(url), 0)


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    url = make_corpus(tmp_path, num=3)
    manifest = Path(url) / "corpus.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"samples": 3', '"samples": 4', 1), encoding="utf-8")
    with pytest.raises(RunError, match="does not match its own digest"):
        open_corpus(url)
