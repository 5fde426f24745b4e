"""What a disk can do to one object: it is then there whole, or not at all, and the next try makes it."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mmdata.errors import RunError
from mmdata.storage import (
    Faults,
    FaultyStore,
    LocalStore,
    Store,
    clear_temps,
    open_store,
    walk_temps,
)
from mmdata.storage.faulty import LASTING, PASSING, FaultyDisk
from tests.fire.conftest import create_at_last
from tests.fire.mounts import mounted, needs_mounts
from tests.fire.seeds import seeds

DATA = random.Random(0).randbytes(3_000_000)
OTHER = DATA[:-1] + b"!"
FAILING = [kind for kind in PASSING if not kind.startswith(("create-", "read-", "replace-", "write-short"))]


def whole_or_absent(store: Store, name: str) -> bool:
    return not store.exists(name) or store.read(name) == DATA


# W15: the disk fails


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first failure of a disk be seen."""
    monkeypatch.setattr(LocalStore, "tries", 1)


@pytest.mark.fault("W15")
@pytest.mark.parametrize("kind", FAILING)
@pytest.mark.parametrize("how", ["create", "create_from"])
def test_an_object_whose_disk_failed_is_abandoned_and_made_anew(kind: str, how: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    store = FaultyStore(str(tmp_path / "run"), Faults(nth={kind: 2 if kind == "write-eio" else 1}))

    def create() -> bool:
        return store.create("a/name", DATA) if how == "create" else store.create_from("a/name", source)

    with pytest.raises(OSError, match="Input/output error, as asked for by a test"):
        create()
    assert whole_or_absent(store, "a/name")
    assert len(list(walk_temps(tmp_path))) == (kind == "unlink-eio")
    assert create()
    assert store.read("a/name") == DATA
    assert store.list("a") == ["name"]


@pytest.mark.fault("W15")
def test_a_short_write_is_continued(tmp_path: Path) -> None:
    faults = Faults(probability=1, kinds=["write-short"])
    store = FaultyStore(str(tmp_path), faults)
    assert store.create("name", DATA)
    store.put("status", b"12345678")
    assert (store.read("name"), store.read("status")) == (DATA, b"12345678")
    assert faults.struck["write-short"] > 20


@pytest.mark.fault("W15")
def test_a_sync_that_failed_is_not_tried_again_on_the_same_file(tmp_path: Path) -> None:
    faults = Faults(nth={"sync-eio": 1})
    store = FaultyStore(str(tmp_path), faults)
    with pytest.raises(OSError, match="Input/output"):
        store.create("name", DATA)
    assert (faults.calls["sync"], faults.calls["link"]) == (1, 0)
    written = faults.calls["write"]
    assert store.create("name", DATA)
    assert (faults.calls["open"], faults.calls["sync"], faults.calls["write"]) == (2, 2, 2 * written), (
        "all bytes again, elsewhere"
    )


@pytest.mark.fault("W15")
def test_a_name_whose_folder_did_not_sync_counts_only_once_it_has(tmp_path: Path) -> None:
    faults = Faults(nth={"folder-eio": 1})
    store = FaultyStore(str(tmp_path), faults)
    with pytest.raises(OSError, match="Input/output"):
        store.create("name", DATA)
    assert store.create("name", DATA)
    assert (faults.calls["folder"], faults.calls["write"]) == (2, 3), "synced again, not written again"
    assert not store.create("name", OTHER)
    assert faults.calls["folder"] == 2


@pytest.mark.fault("W15")
@pytest.mark.parametrize("kind", ["open-edquot", "write-edquot", "write-enospc", "sync-enospc", "close-edquot", "link-enospc"])
def test_a_full_disk_stops_the_run_with_what_to_do(kind: str, tmp_path: Path) -> None:
    store = FaultyStore(str(tmp_path), Faults(nth={kind: 1}))
    with pytest.raises(RunError, match=r"(quota is used up|disk is full)(.|\n)*free some space"):
        store.create("a/name", DATA)
    assert not store.exists("a/name")
    assert not list(walk_temps(tmp_path))
    assert store.create("a/name", DATA)


@pytest.mark.fault("W15", "W33")
@pytest.mark.parametrize("seed", seeds(4, 100))
def test_a_disk_that_fails_at_random_never_shows_half_an_object(seed: int, tmp_path: Path) -> None:
    faults = Faults(seed, 0.2)
    store = FaultyStore(str(tmp_path), faults)
    names = [f"{number % 3}/{number}" for number in range(8)]
    assert all(create_at_last(store, name, DATA) for name in names)
    assert faults.struck
    assert all(store.read(name) == DATA for name in names)
    assert not any(store.create(name, OTHER) for name in names)


@pytest.mark.fault("W33")
def test_faults_reach_the_processes_that_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDATA_FAULTS", "1:1:sync-eio,read-eio")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for url in (str(tmp_path), "memory://faults"):
            assert "Input/output error, as asked for by a test" in pool.submit(_attempt, open_store(url)).result(30)
    monkeypatch.delenv("MMDATA_FAULTS")
    assert type(open_store(str(tmp_path))) is LocalStore
    with pytest.raises(ValueError, match="no trouble is called `write-eoi`"):
        Faults(nth={"write-eoi": 1})


def _attempt(store: Store) -> str:
    try:
        store.create("name", b"data")
        store.read("name")
    except OSError as error:
        return str(error)
    return "done"


# W16: what a person has to mend


@pytest.mark.fault("W16")
@pytest.mark.parametrize(("kind", "said"), [
    ("open-emfile", r"too many open files(.|\n)*ulimit -n"), ("open-enospc", r"disk is full(.|\n)*inodes"),
    ("open-erofs", "read-only"), ("open-eacces", "may not write here"),
    ("link-exdev", "no hard links"), ("link-eperm", "no hard links"),
    ("link-enotsup", r"no hard links(.|\n)*object store such as S3"),
])  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused_by_name(kind: str, said: str, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path), FaultyDisk(Faults(probability=1, kinds=[kind])))
    for act in (store.probe, lambda: store.create("a/name", DATA)):
        with pytest.raises(RunError, match=rf"{tmp_path}.*{said}"):
            act()
    assert not store.exists("a/name")
    assert not store.list("probe")
    assert not list(walk_temps(tmp_path))
    assert kind in LASTING


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=2m,nr_inodes=8") as disk:
        yield disk


@needs_mounts
@pytest.mark.fault("W14", "W16")
def test_a_real_disk_without_space_inodes_or_writing(small_disk: Path) -> None:
    store = open_store(str(small_disk))
    with pytest.raises(RunError, match="the disk is full"):
        store.create("a/large", DATA)
    assert not list((small_disk / "a").iterdir())
    with pytest.raises(RunError, match="the disk is full"):
        _ = [store.create(f"a/{number}", b"1") for number in range(8)]
    assert 3 < len(store.list("a")) < 8
    store.delete("a/0")
    assert store.create("a/last", b"1"), "one inode is enough: the temporary file is the object"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for act in (store.probe, lambda: store.create("a/x", b"1"), lambda: store.put("a/0", b"1")):
        with pytest.raises(RunError, match=r"read-only(.|\n)*mount it for writing"):
            act()
    assert store.create("a/last", b"1"), "what is there is there"


@pytest.mark.fault("W16")
def test_a_process_without_descriptors_says_so_and_exits_non_zero(tmp_path: Path) -> None:
    code = f"""
import resource
from mmdata.storage import open_store
store = open_store({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = []
try:
    while True:
        files.append(open("/dev/null"))
except OSError:
    pass
store.create("name", b"data")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "this process has too many open files" in done.stderr
    assert not list(tmp_path.iterdir())


# W31: what writers that were killed leave


def writer(folder: Path, action: str) -> subprocess.Popen[bytes]:
    code = "import sys; from mmdata.storage import open_store; open_store(sys.argv[1]).create('a/name', b'data')"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], env={**os.environ, "FAILPOINT": f"before-link:1:{action}"})


@pytest.mark.fault("W31")
def test_only_the_temporary_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead, live = writer(tmp_path, "kill"), writer(tmp_path, "stop")
    try:
        assert dead.wait(30) == -signal.SIGKILL
        os.waitid(os.P_PID, live.pid, os.WSTOPPED)
        mine = next(path for path in walk_temps(tmp_path) if f"-{live.pid}-" in path.name)
        machine, _, start = mine.name.removeprefix(".tmp-").split("-")[:3]
        folder = mine.parent
        names = {
            "of another machine": f".tmp-{'0' * 8}-{live.pid}-{start}-00",
            "of one that had the same number": f".tmp-{machine}-{live.pid}-{int(start) - 1}-00",
            "of before": f".tmp-{live.pid}-00",
        }
        for name in names.values():
            (folder / name).touch()
        assert clear_temps(tmp_path) == 3
        assert sorted(walk_temps(tmp_path)) == sorted([mine, folder / names["of another machine"]])
        assert clear_temps(tmp_path, everyone=True) == 1
        assert list(walk_temps(tmp_path)) == [mine]
    finally:
        live.kill()
        live.wait(30)
    assert clear_temps(tmp_path) == 1
    assert open_store(str(tmp_path)).create("a/name", b"data")
    assert clear_temps(tmp_path) == 0
