"""The loader's benchmark measures what it says: its own sides and the limits at tiny sizes, without peers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import loader
from benchmarks.loader_data import Pair, linked, make_corpus, make_large, media
from benchmarks.loader_packing import ROW_TOKENS, RULES, ours, padding, synthetic
from mmdata.loader import Options
from mmdata.media import Resize, transcode
from mmdata.shards import open_corpus
from mmdata.shards.verify import verify
from tests.conftest import encode
from tests.corpus import COLORS, draw

NUM = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> loader.Data:
    home = tmp_path_factory.mktemp("bench")
    made = [transcode(encode(draw(color, "bar")), Resize(image_size=32)) for color in COLORS]
    given = [Pair(one.data, one.width, one.height, f"caption {number}") for number, one in enumerate(made)]
    corpus = make_corpus(home, given, NUM, per_shard=16)
    return loader.Data(home, corpus, linked(corpus, home / "jail", trusted=False), NUM)


def test_the_corpora_are_whole_and_say_who_encoded_them(data: loader.Data) -> None:
    assert verify(data.corpus).problems == ()
    assert verify(data.jail).problems == ()
    assert (open_corpus(data.corpus).trusted, open_corpus(data.jail).trusted) == (True, False)
    images = media(data.corpus)
    assert len(images) == NUM
    assert len(set(images)) == len(COLORS)
    assert open_corpus(data.corpus).read(NUM - 1)["jpg"] == images[-1]


def test_raw_and_decoded_run_without_peers(data: loader.Data) -> None:
    scale = loader.Scale(num=NUM, raw_runs=1, decoded_runs=1)
    results = {result.name: result for result in (*loader.raw(data, scale, ()), *loader.decoded(data, scale, ()))}
    assert {"raw", "raw_unverified", "decoded", "decoded_in_the_jail"} <= set(results)
    for name in ("raw", "decoded"):
        assert results[name].ours > 0  # which of the two is quicker is no test's business
        assert (results[name].limit or 0) > 0
        assert results[name].peer is None


def test_a_whole_epoch_is_read(data: loader.Data) -> None:
    ticks = iter((0.0, NUM * 1e-6))  # the clock is looked at before the first batch and after the last
    assert loader.read_all(data.corpus, Options(batch_size=16, epochs=1, threads=0), lambda: next(ticks)) == pytest.approx(1.0)


def test_the_rivals_pack_what_they_are_given() -> None:
    lengths_N = synthetic(5000)
    for name, rule in {"ours": ours, **RULES}.items():
        rows = rule(lengths_N)
        assert max(rows) <= ROW_TOKENS
        kept = sum(rows) / lengths_N.sum()
        assert kept == 1 or (name == "BAGEL's" and 0.9 < kept < 1)  # its buffer is left at the end
    assert padding(RULES["next-fit"](lengths_N)) > 0.1 > padding(ours(lengths_N))
    assert padding([ROW_TOKENS, ROW_TOKENS // 2]) == 0.25


def test_a_large_index_is_read_where_it_was_filled(data: loader.Data, tmp_path: Path) -> None:
    homes = [make_large(tmp_path / name, data.corpus, 6000, 3) for name in ("first", "second")]
    command = [sys.executable, "-m", "benchmarks.loader_probe", data.corpus, *homes]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["samples"] == 60 * 32
    assert 0 < found["own"] < found["rss"] <= found["peak"]


def test_the_mixture_is_measured_after_each_step(data: loader.Data) -> None:
    results = {result.name: result for result in loader.mixing(data, loader.QUICK)}
    assert results["mixture_away_after_a_draw"].ours < 3 * ROW_TOKENS
    assert results["mixture_away_after_a_step"].ours >= np.finfo(float).eps
