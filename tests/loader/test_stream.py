"""One stream, whatever the number of ranks and threads, wherever it was restored: order and all that was drawn included."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.errors import ConfigError
from mmdata.loader import Loader, LoaderState, Options, TokenCounts, keyed
from mmdata.storage import digest_json
from tests.corpus import make_corpus
from tests.loader.streams import Tagged, count, digest, merged, mixed, rows_of


@pytest.fixture(scope="module")
def whole(corpora: dict[str, str]) -> list[list[tuple[str, ...]]]:
    with mixed(corpora) as loader:
        return rows_of(loader)


def test_each_sample_exactly_once_an_epoch(whole: list[list[tuple[str, ...]]]) -> None:
    items = [tuple(item.split("/")[:3]) for rows in whole for row in rows for item in row]
    expected = {
        (name, str(index), str(epoch)) for name, num in (("a", 40), ("b", 23)) for index in range(num) for epoch in range(2)
    }
    assert len(items) == len(expected)
    assert set(items) == expected


@pytest.mark.fault("L04")
@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("threads", [0, 1, 2, 3, 4])
def test_worlds_and_threads_make_one_stream(
    corpora: dict[str, str], whole: list[list[tuple[str, ...]]], world: int, threads: int
) -> None:
    ranks = [rows_of(mixed(corpora, rank=rank, world=world, threads=threads)) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {len(whole)}
    assert digest(merged(ranks)) == digest(whole)


@pytest.mark.fault("L01", "L03")
def test_restored_at_every_step_the_rest_is_the_same(corpora: dict[str, str], whole: list[list[tuple[str, ...]]]) -> None:
    states = []
    with mixed(corpora) as loader:
        for _ in loader:
            states.append(loader.state().to_bytes())
    for step, state in enumerate(states, start=1):
        world = (1, 2, 4, 8)[step % 4]
        ranks = []
        for rank in range(world):
            with mixed(corpora, rank=rank, world=world, threads=step % 5) as again:
                again.restore(state)
                assert again.step == min(step, again.step)
                ranks.append(rows_of(again))
        assert digest(merged(ranks)) == digest(whole[step:])


def test_a_state_is_the_same_on_every_rank_and_is_small(corpora: dict[str, str]) -> None:
    states = set()
    for rank in range(4):
        with mixed(corpora, rank=rank, world=4) as loader:
            for _ in range(5):
                next(loader)
            states.add(loader.state().to_bytes())
    assert len(states) == 1
    assert len(states.pop()) < 1500


@pytest.mark.fault("L02")
def test_killed_at_random_moments_it_goes_on_from_the_last_state(
    corpora: dict[str, str], whole: list[list[tuple[str, ...]]], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    random = keyed("kills")
    for _ in range(int(os.environ.get("MMDATA_KILLS", "6"))):
        child = _reader(corpora, log)
        assert child.stdout is not None
        for _ in range(int(random.integers(1, 4))):
            if not child.stdout.readline():
                break
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    assert _reader(corpora, log).wait(120) == 0
    steps: dict[int, Any] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        steps[found["step"]] = [tuple(row) for row in found["rows"]]
    assert digest([steps[step] for step in range(len(whole))]) == digest(whole)


def _reader(corpora: dict[str, str], log: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.loader.reader", json.dumps(corpora), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.fault("L06")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "`seed` was 3, now it is 4"),
        ({"batch_size": 16}, "`batch_size` was 8, now it is 16"),
        ({"row_tokens": 61}, "`row_tokens` was 60, now it is 61"),
        ({"window": 71}, "`window` was 70, now it is 71"),
        ({"shuffle": "blocks"}, '`shuffle` was "samples", now it is "blocks"'),
        ({"epochs": 3}, "`epochs` was 2, now it is 3"),
        ({"mixture": [(0, {"a": 0.6, "b": 0.4})]}, "`mixture` gives other weights to steps already planned"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name(corpora: dict[str, str], change: dict[str, Any], said: str) -> None:
    with mixed(corpora) as loader:
        next(loader)
        state = loader.state()
    with mixed(corpora, **change) as other, pytest.raises(ConfigError, match=said):
        other.restore(state)


@pytest.mark.fault("L06", "L07")
def test_a_state_of_another_transform_or_corpus_is_refused_by_name(corpora: dict[str, str], corpus: str) -> None:
    class Other(Tagged):
        version = "2"

    with mixed(corpora) as loader:
        state = loader.state()
    with mixed(corpora, transform=Other()) as other, pytest.raises(ConfigError, match='`transform` was "1", now it is "2"'):
        other.restore(state)
    with mixed({"a": corpora["a"], "b": corpus}) as other, pytest.raises(ConfigError, match="`corpora` was"):
        other.restore(state)


def test_the_mixture_of_the_future_may_change(corpora: dict[str, str], whole: list[list[tuple[str, ...]]]) -> None:
    with mixed(corpora) as loader:
        next(loader)
        state = loader.state()
    with mixed(corpora, mixture=[(0, {"a": 0.7, "b": 0.3}), (5, {"a": 0.0, "b": 1.0})]) as other:
        other.restore(state)
        rest = rows_of(other)
    assert rest[:2] == whole[1:3]  # what was planned already
    assert rest != whole[1:]
    soon = [(0, {"a": 0.7, "b": 0.3}), (2, {"a": 0.0, "b": 1.0})]
    with mixed(corpora, mixture=soon) as other, pytest.raises(ConfigError, match="leave the weights up to step 4 as they were"):
        other.restore(state)


@pytest.mark.fault("L07")
def test_a_damaged_state_is_refused(corpora: dict[str, str]) -> None:
    with mixed(corpora) as loader:
        next(loader)
        good, at = loader.state().to_bytes(), loader.step
        for cut in range(len(good)):
            with pytest.raises(ConfigError, match=r"not valid JSON|is a int|is a str"):
                loader.restore(good[:cut])
        for bit in range(0, len(good) * 8, 7):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ConfigError, match=r"not valid JSON|does not match its own digest|of version"):
                loader.restore(bytes(bad))
        newer = {**json.loads(good), "version": 3}
        with pytest.raises(ConfigError, match="state of version 3, not 2"):
            loader.restore(newer)
        assert loader.step == at
        loader.restore(good)


def test_a_state_whose_samples_are_not_the_planned_ones_is_refused(corpora: dict[str, str]) -> None:
    with mixed(corpora) as loader:
        facts = loader.state().to_json()
        facts["upcoming"] = "0" * 64
        sealed = {**facts, "check": digest_json({key: value for key, value in facts.items() if key != "check"})}
        with pytest.raises(ConfigError, match="the next samples are not those that were planned"):
            loader.restore(LoaderState.from_json(sealed))


def test_a_corpus_changed_under_a_saved_state_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first, second = make_corpus(tmp_path / "one", num=12), make_corpus(tmp_path / "two", num=13)
    with Loader(first) as loader:
        state = loader.state()
    with Loader(second) as other, pytest.raises(ConfigError, match=r"`corpora` was .*now it is"):
        other.restore(state)


@pytest.mark.parametrize(("last", "steps", "left"), [("short", 6, 5), ("drop", 5, 7)])
def test_the_last_step(corpora: dict[str, str], last: Any, steps: int, left: int) -> None:  # noqa: ANN401
    ranks = []
    for rank in range(7):
        with Loader(corpora["a"], options=Options(batch_size=7, epochs=1, last=last, rank=rank, world=7, decode=False)) as loader:
            assert len(loader) == steps
            ranks.append([len(batch) for batch in loader])
    assert {len(sizes) for sizes in ranks} == {steps}
    assert sum(sizes[-1] for sizes in ranks) == left


def test_a_stream_without_end_has_no_length_and_goes_on(corpora: dict[str, str]) -> None:
    with Loader(corpora["b"], options=Options(batch_size=23)) as loader:
        with pytest.raises(TypeError, match="without `epochs` has no length"):
            len(loader)
        epochs = [{draw.epoch for draw in next(loader).draws} for _ in range(4)]
    assert epochs == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(batch_size=10, world=4), "a step of 10 rows cannot be shared by 4 ranks"),
        (Options(rank=2, world=2), "rank 2 of 2"),
        (Options(row_tokens=10), "rows of tokens need the length of each sample"),
        (Options(split="test"), "the corpus has no split `test`"),
        (Options(epochs=0), "`corpus` is drawn for 0 epochs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(corpora: dict[str, str], options: Options, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Loader(corpora["a"], options=options)


def test_a_sample_that_fits_no_row_is_named(corpora: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"train-\d+\.tar: sample \d+ at byte \d+ has \d+ tokens, a row has 10"):
        Loader(corpora["a"], options=Options(row_tokens=10), lengths=TokenCounts("letters", count))


def test_a_pattern_names_several_corpora(corpora: dict[str, str]) -> None:
    pattern = f"{{{corpora['a']},{corpora['b']}}}"
    with Loader(pattern, options=Options(epochs=1, batch_size=100, decode=False)) as loader:
        assert len(next(loader)) == 63


def test_lengths_are_counted_once_and_kept(corpus: str) -> None:
    calls = []

    def counted(sample: Any) -> int:  # noqa: ANN401
        calls.append(sample.index)
        return 5

    for _ in range(2):
        with Loader(corpus, options=Options(row_tokens=20), lengths=TokenCounts("fives", counted)) as loader:
            assert loader.sources[0].size == 200
    assert len(calls) == 40
    kept = next(Path(corpus, "index").glob("tokens-*.npy"))
    damaged = np.load(kept)
    damaged[3] = 7
    kept.unlink()
    np.save(kept, damaged)
    with Loader(corpus, options=Options(row_tokens=20), lengths=TokenCounts("fives", counted)) as loader:
        assert loader.sources[0].size == 200
