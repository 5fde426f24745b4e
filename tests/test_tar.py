"""Our tars are, byte for byte, what webdataset's own writer makes."""

import hashlib
import io
import tarfile
import tempfile
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from webdataset import TarWriter

from benchmarks.loader_write import make_samples, write
from mmdata.shards import tar as tars
from mmdata.shards.tar import BATCH_BYTES, TarFile, member_bytes

Sample = tuple[str, dict[str, bytes]]

KEYS = st.from_regex(r"[0-9A-Za-z_/. -]{1,69}", fullmatch=True)
SUFFIXES = st.one_of(
    st.sampled_from(["jpg", "json", "txt", "0.jpg", "12.png"]), st.from_regex(r"[a-z0-9.]{1,30}", fullmatch=True)
)
DATA = st.one_of(st.binary(max_size=1500), st.integers(0, 3000).map(bytes))


def written(path: Path, samples: list[Sample], *, hashed: bool = True) -> TarFile:
    with TarFile(path, hashed=hashed) as tar:
        for key, members in samples:
            tar.write(key, members)
    return tar


def by_webdataset(samples: list[Sample]) -> bytes:
    buffer = io.BytesIO()
    with TarWriter(buffer, encoder=False, mtime=0) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(KEYS, st.dictionaries(SUFFIXES, DATA, min_size=1, max_size=4)), max_size=6))
@example([("k" * 96, {"jpg": b"a name of 100 bytes"})])
def test_random_samples_give_webdatasets_bytes(samples: list[Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, expected = Path(folder) / "x.tar", by_webdataset(samples)
        assert written(path, samples).sha256 == hashlib.sha256(expected).hexdigest()
        assert path.read_bytes() == expected


@pytest.mark.parametrize("key", ["k" * 97, "d" * 60 + "/" + "k" * 60, "é"])
def test_a_name_that_no_plain_header_holds_is_left_to_webdataset(tmp_path: Path, key: str) -> None:
    samples = [("first", {"jpg": b"1"}), (key, {"jpg": b"2", "txt": b""})]
    expected = by_webdataset(samples)
    with tarfile.open(fileobj=io.BytesIO(expected)) as tar:
        ends = [member.offset_data + 512 * (member.size > 0) for member in tar]
    if ends == [1024, 2048, 2560]:  # it has found a place for it
        written(tmp_path / "x.tar", samples)
        assert (tmp_path / "x.tar").read_bytes() == expected
    else:  # webdataset below 1.0 adds headers: nobody would know beforehand where data lie
        with pytest.raises(AssertionError, match="offsets would be wrong"):
            written(tmp_path / "x.tar", samples)


def test_many_and_large_samples_give_webdatasets_bytes_and_right_hashes(tmp_path: Path) -> None:
    sizes = [*range(0, 200_000, 997), BATCH_BYTES - 512, BATCH_BYTES, BATCH_BYTES + 1, 3 * BATCH_BYTES + 7, 0, 511, 512, 513]
    samples = [(f"{number:06d}", {"jpg": bytes([number % 251]) * size, "txt": b"text"}) for number, size in enumerate(sizes)]
    tar = written(tmp_path / "x.tar", samples)
    data = (tmp_path / "x.tar").read_bytes()
    assert data == by_webdataset(samples)
    assert tar.sha256 == hashlib.sha256(data).hexdigest()
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + member_bytes(size) + member_bytes(4))
    assert tar.xxh3 == [xxhash.xxh3_64_intdigest(data[start:stop]) for start, stop in pairwise(starts)]


def test_without_hashes_the_bytes_are_the_same(tmp_path: Path) -> None:
    samples = [("000001", {"jpg": bytes(3 * BATCH_BYTES), "txt": b"a"}), ("000002", {"jpg": b"b"})]
    tar = written(tmp_path / "x.tar", samples, hashed=False)
    assert (tar.sha256, tar.xxh3) == (None, [])
    assert (tmp_path / "x.tar").read_bytes() == by_webdataset(samples)


def test_a_writer_of_other_headers_is_left_to_write_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next webdataset may set an owner by name: what was cut from one header would then be wrong in another."""

    class Changed(TarWriter):  # type: ignore[misc]
        def write(self, obj: dict[str, object]) -> int:
            self.user = f"owner of {obj['__key__']}"[:31]
            return int(super().write(obj))

    monkeypatch.setattr(tars, "_tar_writer", lambda: Changed)
    tars._header.cache_clear()
    try:
        written(tmp_path / "x.tar", [("one", {"jpg": b"1"}), ("two", {"jpg": b"2"})])
    finally:
        tars._header.cache_clear()
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert [(member.name, member.uname) for member in tar] == [("one.jpg", "owner of one"), ("two.jpg", "owner of two")]


def test_a_name_that_is_no_member_is_an_error(tmp_path: Path) -> None:
    with TarFile(tmp_path / "x.tar") as tar, pytest.raises(AssertionError, match="offsets would be wrong"):
        tar.write("000001", {"_meta": b"webdataset leaves it out"})


def test_an_error_of_the_disk_is_told_and_ends_the_thread(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), TarFile(Path("/dev/full"), hashed=True) as tar:
        tar.write("000001", {"jpg": bytes(2 * BATCH_BYTES)})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sha256")]


def test_the_benchmark_compares_the_same_bytes(tmp_path: Path) -> None:
    results = write(make_samples(30), tmp_path, runs=1)
    assert [str(result["name"]).partition("; ")[2] for result in results] == ["plain write", "SHA-256 alone"]
    assert all(result["peer_name"] == "webdataset ShardWriter" and result["ratio"] for result in results)
