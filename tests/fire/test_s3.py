"""S3 as the run folder: the same bytes, killed or not; one driver at a time; no listing is believed."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmdata.demo import DemoServer
from mmdata.engine import RunStore
from mmdata.shards import open_corpus
from mmdata.storage import ObjectStore, open_store
from tests.fire.conftest import Line
from tests.fire.forks import Forked
from tests.fire.runs import Site, finish, wait_for, write_site
from tests.fire.seeds import GAUNTLET, seeds
from tests.fire.test_leases import state_of


class Bucket:
    """A plan whose run folder is a prefix of a bucket."""

    def __init__(self, home: Path, server: DemoServer, url: str) -> None:
        self.site, self.url = write_site(home, server), url

    def start(self, **env: str) -> Forked:
        return self.site.start(run_dir=self.url, **env)

    def run(self, **env: str) -> subprocess.CompletedProcess[str]:
        return finish(self.start(**env))

    def corpus(self) -> dict[str, object]:
        run = RunStore(self.url)
        place = run.manifest(run.finished()[-1])["corpus"]
        return open_corpus(f"{self.url}/{place}").facts


@pytest.fixture
def local(undisturbed: Site) -> dict[str, object]:
    return open_corpus(str(undisturbed.home / "run/corpus")).facts


@pytest.mark.fault("W17")
def test_W17_a_bucket_holds_the_same_bytes_as_a_disk(
    tmp_path: Path, server: DemoServer, s3_url: str, local: dict[str, object]
) -> None:
    bucket = Bucket(tmp_path / "s3", server, s3_url)
    done = bucket.run()
    assert done.returncode == 0, done.stderr
    assert bucket.corpus() == local
    again = bucket.run()
    assert again.returncode == 0
    assert "nothing was to do" in again.stdout


@pytest.mark.fault("W12", "W17")
@pytest.mark.parametrize("seed", seeds(1, 6))
def test_W17_the_driver_killed_before_and_after_a_put(
    tmp_path: Path, server: DemoServer, s3_url: str, local: dict[str, object], seed: int,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    moments = [
        f"{when}-put:{nth}"
        for nth in random.Random(seed).sample(range(1, 60), 3 if GAUNTLET else 2)
        for when in ("before", "after")
    ]

    def killed(place: int) -> bool:
        bucket = Bucket(tmp_path / str(place), server, f"{s3_url}-{place}")
        first = bucket.run(FAILPOINT=f"{moments[place]}:kill")
        assert first.returncode == -signal.SIGKILL, first.stderr
        done = bucket.run()
        assert done.returncode == 0, done.stderr
        return bucket.corpus() == local

    with ThreadPoolExecutor(2) as pool:
        same = list(pool.map(killed, range(len(moments))))
    record_property("figure", f"{sum(same)}/{len(same)} kills byte-identical")
    assert all(same)


@pytest.mark.fault("W19", "W20")
def test_W20_a_zombie_of_a_bucket_is_fenced_off(
    tmp_path: Path, server: DemoServer, s3_url: str, local: dict[str, object]
) -> None:
    """The holder stands still; another takes the lease over, finishes, and the first finds out."""
    bucket = Bucket(tmp_path / "s3", server, s3_url)
    zombie = bucket.start(FAILPOINT="before-columns:3:stop")
    try:
        assert wait_for(lambda: zombie.poll() is not None or state_of(zombie.pid) == "T")
        other = bucket.run()
        assert other.returncode == 0, other.stderr
        before = bucket.corpus()
        os.kill(zombie.pid, signal.SIGCONT)
        woken = finish(zombie)
    finally:
        zombie.kill()
    assert woken.returncode == 4, woken.stderr
    assert bucket.corpus() == before == local


@pytest.mark.fault("W19")
def test_W19_two_drivers_of_a_bucket(tmp_path: Path, server: DemoServer, s3_url: str, local: dict[str, object]) -> None:
    bucket = Bucket(tmp_path / "s3", server, s3_url)
    both = [bucket.start(), bucket.start()]
    done = [finish(process) for process in both]
    assert sorted(each.returncode for each in done) in ([0, 4], [0, 0]), [each.stderr for each in done]
    assert bucket.corpus() == local


@pytest.mark.fault("W17")
def test_W17_no_listing_is_believed(
    tmp_path: Path, server: DemoServer, s3_url: str, local: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose listings show nothing makes the same corpus, and finds all done the second time."""
    monkeypatch.setattr(ObjectStore, "list", lambda *_: [])
    from mmdata.engine import Runner
    from mmdata.executors import InlineExecutor
    from mmdata.plan import load_plan

    site = write_site(tmp_path / "s3", server)
    plan = load_plan(site.home / "plan.yaml", base=site.home)
    result = Runner(plan, s3_url, server.allow).execute(InlineExecutor(), quiet=True)
    assert result.corpus is not None
    assert open_corpus(result.corpus).facts == local
    assert not Runner(plan, s3_url, server.allow).execute(InlineExecutor(), quiet=True).fresh


@pytest.mark.fault("W17")
@pytest.mark.parametrize("trouble", ["500 after", "lost", "409", "slow"])
def test_W17_a_store_that_stumbles_all_the_time(
    tmp_path: Path, server: DemoServer, s3: Line, s3_url: str, local: dict[str, object], trouble: str
) -> None:
    bucket = Bucket(tmp_path / "s3", server, s3_url)
    process = bucket.start()
    s3.meddle("PUT", trouble, times=3)
    done = finish(process)
    if done.returncode == 1:
        done = bucket.run()
    assert done.returncode == 0, done.stderr
    assert bucket.corpus() == local


@pytest.mark.fault("W16")
def test_a_store_without_conditional_create_is_refused(tmp_path: Path, server: DemoServer) -> None:
    done = finish(Bucket(tmp_path / "s3", server, "ftp://127.0.0.1:9/run").start(), 60)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert open_store(str(tmp_path)).exists("s3/plan.yaml")
