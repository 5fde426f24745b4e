"""Tars without an index give what webdataset gives, or an error that names tar and byte; never less in silence."""

import pickle
import tarfile
from pathlib import Path

import fsspec
import pytest

from mmdata.errors import ConfigError, RunError
from mmdata.shards import stream_samples
from tests.shards.tars import pairs, seen_by_webdataset, write_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.mark.parametrize("form", FORMATS)
def test_a_stream_gives_what_webdataset_gives(form: int, tmp_path: Path) -> None:
    members = [(f"{home}{name}", data) for home in ("", "./x.y/", "long-name/" * 12) for name, data in pairs(2)]
    paths = [write_tar(tmp_path / f"{number:05d}.tar", members, form) for number in range(3)]
    seen = [sample for path in paths for sample in seen_by_webdataset(path)]
    assert len(seen) == 18
    assert list(stream_samples([f"{tmp_path}/{{00000..00002}}.tar"])) == seen
    assert list(stream_samples([str(path) for path in paths])) == seen


def test_a_stream_from_a_store(tmp_path: Path) -> None:
    path, memory = write_tar(tmp_path / "0.tar", pairs(3)), fsspec.filesystem("memory")
    memory.pipe_file("/stream/0.tar", path.read_bytes())
    try:
        assert list(stream_samples(["memory://stream/0.tar"])) == seen_by_webdataset(path)
    finally:
        memory.rm("/stream", recursive=True)


def test_a_file_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "0.tar", pairs(1))
    monkeypatch.chdir(tmp_path)
    assert [key for key, _ in stream_samples(["0.tar"])] == ["000000000"]


def test_a_tar_cut_anywhere_is_an_error_and_no_half_sample_is_given(tmp_path: Path) -> None:
    members = [(f"{key}.{suffix}", b"x" * 600) for key in "abc" for suffix in ("jpg", "txt")]
    whole = write_tar(tmp_path / "0.tar", members).read_bytes()
    end = 6 * 1536
    for size in range(0, end + 1, 256):
        (tmp_path / "0.tar").write_bytes(whole[:size])
        given: list[tuple[str, dict[str, bytes]]] = []
        with pytest.raises(RunError, match=r"0.tar: byte [\d,]+: the archive is cut short") as error:
            given.extend(stream_samples([str(tmp_path / "0.tar")]))
        assert all(sorted(sample) == ["jpg", "txt"] for _, sample in given)
        byte = int(str(error.value).partition(": byte ")[2].partition(":")[0].replace(",", ""))
        assert byte == (size + 424) // 1536 * 1536  # the header that is not there, or that of the member that is cut
    (tmp_path / "0.tar").write_bytes(whole[: end + 512])
    assert len(list(stream_samples([str(tmp_path / "0.tar")]))) == 3


def test_a_wrong_bit_in_any_header_is_an_error_before_its_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [(f"{key}.{suffix}", b"x" * 600) for key in "abc" for suffix in ("jpg", "txt")])
    whole = path.read_bytes()
    for byte in (*range(14), 108, 125, 134, 150, 156, 259, 345, 400):
        data = bytearray(whole)
        data[3 * 1536 + byte] ^= 2
        path.write_bytes(bytes(data))
        given: list[tuple[str, dict[str, bytes]]] = []
        with pytest.raises(RunError, match=r"0.tar: byte 4,608: (this header's checksum is wrong|no tar header)"):
            given.extend(stream_samples([str(path)]))
        assert [key for key, _ in given] == ["a"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("twice", r"0.tar: byte [\d,]+: sample `000000000` has two members with the suffix `jpg`"),
        ("joined", r"0.tar: byte [\d,]+: bytes behind the archive's end"),
        ("gzip", r"0.tar: byte 0: compressed by gzip"),
        ("missing", r"0.tar: cannot be read: .*No such file"),
    ],
)
def test_damage_is_named(made: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    if made == "twice":
        write_tar(path, [*pairs(1), ("000000000.JPG", b"")])
    elif made == "joined":
        path.write_bytes(write_tar(path, pairs(1)).read_bytes() * 2)
    elif made == "gzip":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(RunError, match=message):
        list(stream_samples([str(path)]))


def test_what_cannot_be_meant_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="shuffle: -1 samples cannot be held"):
        stream_samples(["0.tar"], shuffle=-1)
    with pytest.raises(ConfigError, match=r"urls: .*\n  hint: each `{` needs its `}`"):
        stream_samples(["{0.tar"])


def test_a_buffer_shuffles_and_the_seed_says_how(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [(f"{number:03d}.txt", b"") for number in range(200)])

    def keys(shuffle: int, seed: int) -> list[str]:
        return [key for key, _ in stream_samples([str(path)], shuffle=shuffle, seed=seed)]

    plain = keys(0, 0)
    assert plain == sorted(plain)
    assert keys(20, 1) == keys(20, 1) != keys(20, 2)
    assert sorted(keys(20, 1)) == plain != keys(20, 1)
    assert all(int(key) <= place + 20 for place, key in enumerate(keys(20, 1)))
    assert sorted(keys(1000, 1)) == plain


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("trapped").touch, ())


def test_nothing_in_a_tar_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = pickle.dumps(Trap())
    write_tar(tmp_path / "0.tar", [("a.pyd", trap), ("a.pickle", trap), ("a.npy", b"\x93NUMPY"), ("../../b.txt", b"")])
    samples = list(stream_samples(["0.tar"]))
    assert samples == [("a", {"pyd": trap, "pickle": trap, "npy": b"\x93NUMPY"}), ("../../b", {"txt": b""})]
    with pytest.raises(RunError, match="cannot be read"):
        list(stream_samples(["pipe:touch trapped"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar"]
