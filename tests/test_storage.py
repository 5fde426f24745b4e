"""Objects are created whole and once."""

import threading
from pathlib import Path

import pytest

from mmdata.errors import ConfigError, RunError
from mmdata.storage import ObjectStore, Store, open_store, walk_temps


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "run"))
    return ObjectStore(f"memory://{tmp_path.name}")


def test_create_once(store: Store) -> None:
    assert store.create("a/b", b"one")
    assert not store.create("a/b", b"two")
    assert store.read("a/b") == b"one"
    with pytest.raises(RunError, match="exists with other bytes"):
        store.create_same("a/b", b"two")
    store.create_same("a/b", b"one")
    assert store.list("a") == ["b"]


def test_create_from_a_file(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    assert store.create_from("big", source)
    assert not store.create_from("big", source)
    assert store.read_range("big", 10, 5) == b"xxxxx"
    with pytest.raises(RunError, match="cut short"):
        store.read_range("big", 2_999_999, 5)


def test_put_replaces_and_delete_removes(store: Store) -> None:
    store.put("status", b"1")
    store.put("status", b"2")
    assert store.read("status") == b"2"
    store.delete("status")
    assert not store.exists("status")
    store.delete("status")


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


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot open nope://x"):
        open_store("nope://x")
