"""Objects are created whole and once."""

import pickle
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mmdata import failpoint
from mmdata.errors import ConfigError, RunError
from mmdata.storage import LocalStore, ObjectStore, Store, open_store, walk_temps

LOCAL_STEPS = ("temp", "write", "sync", "link", "folder", "unlink")


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first failure of a disk be seen."""
    monkeypatch.setattr(LocalStore, "tries", 1)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "run"))
    return ObjectStore(f"memory://{tmp_path.name}")


def test_create_once(store: Store) -> None:
    assert store.create("a/b", b"one")
    assert store.create("a/b", b"one"), "the name holds these bytes, whoever wrote them"
    assert not store.create("a/b", b"two")
    assert not store.create("a/b", b"one and more")
    assert store.read("a/b") == b"one"
    assert store.size("a/b") == 3
    with pytest.raises(RunError, match="exists with other bytes"):
        store.create_same("a/b", b"two")
    store.create_same("a/b", b"one")
    assert store.list("a") == ["b"]
    assert store.list("a/b") == store.list("none") == []
    assert store.exists("a/b")
    assert not store.exists("a")


def test_create_from_a_file(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    assert store.create_from("big", source)
    assert store.create_from("big", source)
    source.write_bytes(b"x" * 2_999_999 + b"y")
    assert not store.create_from("big", source)
    assert store.read_range("big", 3_000_000, 0) == b""
    assert store.read_range("big", 10, 5) == b"xxxxx"
    with pytest.raises(RunError, match="cut short"):
        store.read_range("big", 2_999_999, 5)
    with pytest.raises(RunError, match="0 of 5 bytes at 4000000"):
        store.read_range("big", 4_000_000, 5)


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.create("empty", b"")
    assert store.create("empty", b"")
    assert not store.create("empty", b"x")
    assert (store.read("empty"), store.size("empty")) == (b"", 0)


def test_put_replaces_and_delete_removes(store: Store) -> None:
    store.put("status", b"1")
    store.put("status", b"2")
    assert store.read("status") == b"2"
    store.delete("status")
    assert not store.exists("status")
    store.delete("status")
    store.create("folder/a/b", b"")
    store.create("folder/c", b"")
    store.delete("folder")
    assert store.list("folder") == []
    assert not store.exists("folder/a/b")


def test_a_probe_leaves_nothing(store: Store) -> None:
    store.probe()
    assert store.list("") == []


def test_a_store_travels_by_its_url(store: Store) -> None:
    again = pickle.loads(pickle.dumps(store))
    assert (type(again), again.url) == (type(store), store.url)


def test_a_store_that_looks_and_then_writes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no conditional create"):
        ObjectStore(f"local://{tmp_path}").probe()


def test_a_store_that_overwrites_what_is_created_is_refused() -> None:
    class Careless(MemoryFileSystem):  # type: ignore[misc]
        protocol = "careless"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            super().pipe_file(path, value)

    fsspec.register_implementation("careless", Careless, clobber=True)
    store = ObjectStore("careless://run")
    with pytest.raises(RunError, match=r"a second writer takes a name(.|\n)*can only be read"):
        store.probe()
    assert store.list("") == []


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    won: list[int] = []

    def write(number: int) -> None:
        if store.create("name", bytes([number]) * 1000):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("name") == bytes(won) * 1000
    assert not list(walk_temps(tmp_path))


@pytest.mark.parametrize("point", [f"{when}-{name}" for name in LOCAL_STEPS for when in ("before", "after")])
def test_every_step_of_a_create_is_passed_and_can_fail(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoint, "_hits", {})
    monkeypatch.setenv("FAILPOINT", f"{point}:1:raise")
    store = open_store(str(tmp_path))
    with pytest.raises(OSError, match=point):
        store.create("name", b"data")
    assert store.create("name", b"data")
    assert store.read("name") == b"data"


@pytest.mark.parametrize("point", ["before-put", "after-put"])
def test_a_create_in_an_object_store_passes_its_step(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoint, "_hits", {})
    monkeypatch.setenv("FAILPOINT", f"{point}:1:raise")
    store = ObjectStore(f"memory://{point}")
    assert store.create("name", b"data"), "a create that may have happened is asked for again"
    assert list(failpoint._hits.values()) == [1 if point == "after-put" else 2]


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot open nope://x"):
        open_store("nope://x")
