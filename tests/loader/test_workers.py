"""Worker processes of torch's DataLoader: the loader's own stream, and a state that does not know how many there were."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from torch.utils.data import DataLoader

from mmdata.errors import RunError
from mmdata.loader import Loader, Sample
from mmdata.loader.workers import Feed, LoaderDataset
from tests.loader.streams import Tagged, digest, mixed, rows_of

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


@pytest.fixture(scope="module")
def whole(corpora: dict[str, str]) -> list[list[tuple[str, ...]]]:
    with mixed(corpora) as loader:
        return rows_of(loader)


def make(corpora: dict[str, str]) -> partial[Loader[str]]:
    return partial(mixed, corpora, threads=0)


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_any_number_of_workers_makes_the_loaders_stream(
    corpora: dict[str, str], whole: list[list[tuple[str, ...]]], workers: int
) -> None:
    assert digest(rows_of(Feed(make(corpora), workers))) == digest(whole)


@pytest.mark.fault("L04")
def test_a_state_goes_from_one_number_of_workers_to_another(corpora: dict[str, str], whole: list[list[tuple[str, ...]]]) -> None:
    found, state = [], make(corpora)().state_dict()
    for workers in (1, 2, 4, 0, 1):
        feed = Feed(make(corpora), workers)
        feed.load_state_dict(state)
        found += rows_of(_some(feed, 1))
        state = feed.state_dict()
    feed = Feed(make(corpora), 2)
    feed.load_state_dict(state)
    assert digest(found + rows_of(feed)) == digest(whole)


def _some(feed: Feed[str], num: int) -> Iterator[Any]:
    for number, batch in enumerate(feed, start=1):
        yield batch
        if number == num:
            return


def test_a_plain_dataloader_reads_it(corpora: dict[str, str], whole: list[list[tuple[str, ...]]]) -> None:
    loader = DataLoader(LoaderDataset(make(corpora)), batch_size=None, num_workers=2)
    assert digest(rows_of(loader)) == digest(whole)


def test_a_stateful_dataloader_goes_on_where_it_was(corpora: dict[str, str], whole: list[list[tuple[str, ...]]]) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    options = {"batch_size": None, "num_workers": 2, "snapshot_every_n_steps": 1}
    loader = stateful.StatefulDataLoader(LoaderDataset(make(corpora)), **options)
    first = [batch.rows for _, batch in zip(range(4), loader, strict=False)]
    again = stateful.StatefulDataLoader(LoaderDataset(make(corpora)), **options)
    again.load_state_dict(loader.state_dict())
    assert digest(first + rows_of(again)) == digest(whole)


class Deadly(Tagged):
    """Ends its process, or stands still, at one sample."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, sample: Sample, random: Any) -> str:  # noqa: ANN401
        if sample.source == "a" and sample.index == 7:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "exit":
                os._exit(123)
            else:
                import time

                time.sleep(3600)
        return super().__call__(sample, random)


@pytest.mark.fault("L16")
@pytest.mark.parametrize("how", ["kill", "exit", "hang"])
def test_a_worker_that_dies_or_hangs_is_an_error_in_time(corpora: dict[str, str], how: str) -> None:
    feed = Feed(partial(mixed, corpora, threads=0, transform=Deadly(how)), 2, timeout=3.0)
    with pytest.raises(RunError, match=r"step \d+: a worker of the loader died or hangs"):
        for _ in feed:
            pass
    assert feed.state_dict()["version"] == 2
