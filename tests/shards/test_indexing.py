"""A foreign folder becomes a corpus that gives what webdataset's own reader gives; what is wrong is named by tar and byte."""

import hashlib
import io
import json
import mmap
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmdata.cli.main import main
from mmdata.errors import ConfigError, RunError
from mmdata.shards import KINDS, Corpus, index_folder, open_corpus, verify
from mmdata.shards.members import TarDamage, Walk, members
from mmdata.shards.tar_index import TarIndex, Window
from mmdata.storage import open_store
from tests.shards.tars import Members, pairs, pictures, seen_by_webdataset, write_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "a-folder-with-a-long-name/" * 5


def read_all(corpus: Corpus) -> list[dict[str, bytes]]:
    return [corpus.read(index) for index in range(len(corpus.samples))]


def flipped(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_a_folder_becomes_a_corpus_in_place(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", pairs(3))
    write_tar(tmp_path / "00001.tar", pairs(2, first=3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = index_folder(str(tmp_path))
    assert (done.shards, done.samples, done.blocks, done.splits, done.checksums) == (2, 5, 10, {"train": 5}, False)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")} == before
    corpus = open_corpus(str(tmp_path))
    assert [sample["txt"] for sample in read_all(corpus)] == [b"picture %d" % number for number in range(5)]
    assert [sample["jpg"] for sample in read_all(corpus)] == [*pictures(3), *pictures(2)]
    assert not corpus.trusted
    assert json.loads((tmp_path / "sizes.json").read_bytes()) == {"00000.tar": 3, "00001.tar": 2}
    expected = hashlib.sha256(b"00001.tar\0" + b"000000003").hexdigest()[:32]
    assert corpus.sample_id(3) == expected


def test_blocks_say_where_media_and_texts_lie(tmp_path: Path) -> None:
    one, two, three = pictures(3)
    write_tar(tmp_path / "0.tar", [
        ("a.txt", b"side by side"), ("a.JPEG", one), ("a.cls", b"7"),
        ("b.10.png", two), ("b.2.jpg", three), ("b.json", b"{}"), ("b.txt", b"after"),
        ("c.mp4", b"video"), ("d.npy", b"array"),
    ])  # fmt: skip
    done = index_folder(str(tmp_path))
    corpus = open_corpus(str(tmp_path))
    data = (tmp_path / "0.tar").read_bytes()
    found = []
    for index, sample in enumerate(corpus.samples):
        start = int(sample["start"]) * 512
        for block in corpus.blocks_of(index):
            at, size = start + int(block["offset"]), int(block["size"])
            found.append((index, KINDS[block["kind"]], int(block["position"]), data[at : at + size]))
    assert found == [
        (0, "image", 0, one), (0, "text", 0, b"side by side"),
        (1, "image", 0, three), (1, "image", 1, two), (1, "text", 2, b"after"),
        (2, "video", 0, b"video"),
    ]  # fmt: skip
    assert corpus.samples["num_blocks"].tolist() == [2, 3, 1, 0]
    assert done.cautions == ("1 samples have no image, video or text",)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_of_tar_reads_as_webdataset_reads_it(form: str, tmp_path: Path) -> None:
    given_: Members = [(f"{folder}{name}", data) for folder in ("", "./", "x.y/", LONG[:130]) for name, data in pairs(2)]
    path = write_tar(tmp_path / "0.tar", given_, FORMATS[form])
    index_folder(str(tmp_path), checksums=True)
    corpus, seen = open_corpus(str(tmp_path)), seen_by_webdataset(path)
    assert len(seen) == 8
    assert read_all(corpus) == [sample for _, sample in seen]
    assert verify(str(tmp_path)).whole
    ids = [hashlib.sha256(b"0.tar\0" + key.encode()).hexdigest()[:32] for key, _ in seen]
    assert [corpus.sample_id(index) for index in range(8)] == ids


def test_pax_sizes_and_times_are_no_obstacle(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(3), tarfile.PAX_FORMAT, mtime="1700000000.25", comment="é" * 400)
    index_folder(str(tmp_path))
    assert read_all(open_corpus(str(tmp_path))) == [sample for _, sample in seen_by_webdataset(path)]


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
def test_what_tar_itself_packs(form: str, tmp_path: Path) -> None:
    folder, home = tmp_path / "files", tmp_path / "set"
    for name, data in pairs(4):
        path = folder / (LONG[:60] if form != "v7" else "x") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    home.mkdir()
    subprocess.run(
        ["tar", f"--format={form}", "--sort=name", "-cf", str(home / "0.tar"), "-C", str(folder), "."], check=True, timeout=60
    )
    index_folder(str(home), checksums=True)
    assert read_all(open_corpus(str(home))) == [sample for _, sample in seen_by_webdataset(home / "0.tar")]
    assert verify(str(home)).whole


def test_webdatasets_own_writer(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=3, verbose=0) as writer:
        for number, data in enumerate(pictures(7)):
            writer.write({"__key__": f"k/{number:04d}", "jpg": data, "cls": number, "meta.json": {"n": number}})
    assert index_folder(str(tmp_path)).samples == 7
    seen = [sample for path in sorted(tmp_path.glob("*.tar")) for _, sample in seen_by_webdataset(path)]
    assert read_all(open_corpus(str(tmp_path))) == seen


NAMES = st.from_regex(r"(\./)?([ab]{1,3}/)?([a-c]{1,3}|x{95,120})\.(jpg|JPG|txt|json|0\.png|cls)", fullmatch=True)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=12), st.sampled_from(sorted(FORMATS)))
def test_any_tar_reads_as_webdataset_reads_it(given_: Members, form: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write_tar(Path(folder) / "0.tar", given_, FORMATS[form])
        except ValueError:  # USTAR has no room for some long names
            return
        try:
            index_folder(folder, checksums=True)
        except ConfigError as error:
            said = str(error)
        else:
            assert read_all(open_corpus(folder)) == [sample for _, sample in seen_by_webdataset(path)]
            assert verify(folder).whole
            return
        if "two members" in said:
            with pytest.raises(ValueError, match="duplicate file name"):
                seen_by_webdataset(path)
        else:
            assert "goes on after other samples" in said
            keys = [name.rpartition("/")[::2] for name, _ in given_]
            assert len(keys) > len({(home, name.partition(".")[0]) for home, name in keys})


def told(data: bytes | mmap.mmap) -> object:
    """Return the index of a tar as plain values, or what is wrong with it."""
    try:
        index = TarIndex("0.tar").fill(data)
    except TarDamage as damage:
        return str(damage)
    return index.samples.tolist(), index.blocks.tolist(), index.sample_ids.tolist(), list(index.places(b"txt")), index.skipped


PLAIN = st.sampled_from([
    "a.jpg", "a.JPG", "a.txt", "a.seg.png", "a.depth1.png", "a.", "a", "atxt", "aa.jpg", "aa.txt", "aa.0.jpg", "aatxt",
    "b.jpg", "b.txt", "c.txt", "d.txt", "_a.txt", "_a.jpg", "__a__/b.txt", "x/a.txt", "x/a.jpg", ".a.txt", "txt", "jpg",
    "x.y/a.txt", "x.y/a.jpg", "x.z/a.txt", "x/.a", "x/.b", "./a.txt",
])  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.tuples(PLAIN, st.sampled_from([b"", b"1", bytes(513)])), max_size=9, unique_by=lambda member: member[0]),
    st.booleans(),
    st.integers(1, 9),
    st.none() | st.tuples(st.integers(0, 9), st.integers(0, 1023), st.integers(0, 7)),
    st.sampled_from([{}, {"mtime": "1.5"}, {"mtime": "1700000000.25"}, {"comment": "x"}]),
)
@example([("a.jpg", b""), ("b.jpg", b""), ("c.txt", b"")], False, 9, (0, 513, 1), {"mtime": "1.5"})
@example([("x/.a", b""), ("b.jpg", b""), ("c.txt", b"")], False, 9, None, {})
def test_the_quick_way_through_plain_headers_comes_to_what_the_walk_comes_to(
    given_: Members, in_order: bool, batch: int, flip: tuple[int, int, int] | None, pax: dict[str, str]
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmdata.shards.plain.BATCH", batch)
        path = write_tar(Path(folder) / "0.tar", sorted(given_) if in_order else given_, tarfile.PAX_FORMAT, **pax)
        if flip is not None:
            with tarfile.open(path) as tar:
                starts = [member.offset for member in tar] or [0]
            flipped(path, starts[flip[0] % len(starts)] + flip[1], flip[2])
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert told(mapped) == told(path.read_bytes())


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind, name in (
            (tarfile.DIRTYPE, "a"), (tarfile.SYMTYPE, "a.png"), (tarfile.LNKTYPE, "a.webp"), (tarfile.CHRTYPE, "dev.txt"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            tar.addfile(info)
        for name in ("__meta__/info.json", "README", "a.jpg", ".hidden", "a.txt", "LICENSE"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
    (tmp_path / "0.tar").write_bytes(buffer.getvalue())
    done = index_folder(str(tmp_path), checksums=True)
    assert done.cautions == ("3 links and devices in the tars hold no data: they are no members",)
    assert read_all(open_corpus(str(tmp_path))) == [{"jpg": b"12345", "txt": b"12345"}]
    assert verify(str(tmp_path)).whole


def test_splits_are_in_the_names_and_train_comes_first(tmp_path: Path) -> None:
    names = ["val-0.tar", "cc3m-validation-1.tar", "0001.tar", "train-0.tar", "test-a.tar", "testing.tar"]
    for number, name in enumerate(names):
        write_tar(tmp_path / name, pairs(1, first=number))
    (tmp_path / ".hidden.tar").write_bytes(b"junk")
    done = index_folder(str(tmp_path), checksums=True)
    corpus = open_corpus(str(tmp_path))
    assert corpus.shards == ["0001.tar", "testing.tar", "train-0.tar", "test-a.tar", "val-0.tar", "cc3m-validation-1.tar"]
    assert corpus.splits == ["train", "test", "val", "validation"]
    assert done.splits == {"train": 3, "test": 1, "val": 1, "validation": 1}
    assert corpus.samples["split"].tolist() == [0, 0, 0, 1, 2, 3]
    assert verify(str(tmp_path)).whole


def test_an_img2dataset_folder(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"{shard:05d}.tar", pairs(2, first=10_000 * shard))
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05d}_stats.json").write_text('{"successes": 2}', encoding="utf-8")
    done = index_folder(str(tmp_path))
    assert done.samples == 4
    assert done.cautions == ("img2dataset cannot go on in this folder: it takes every .json in it for the stats of a shard",)
    assert open_corpus(str(tmp_path)).facts["cautions"] == list(done.cautions)
    assert index_folder(str(tmp_path)).cautions == done.cautions


def test_an_empty_archive_is_a_shard_of_no_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [])
    write_tar(tmp_path / "1.tar", pairs(1))
    assert index_folder(str(tmp_path), checksums=True).samples == 1
    assert verify(str(tmp_path)).whole
    assert open_corpus(str(tmp_path)).read(0)["txt"] == b"picture 0"


def damaged(kind: str, path: Path) -> None:
    members_ = pairs(3)
    if kind == "twice":
        write_tar(path, [*members_, ("000000002.JPG", b"x")])
    elif kind == "apart":
        write_tar(path, [*members_, ("000000001.cls", b"x")])
    elif kind == "joined":
        path.write_bytes(write_tar(path, members_).read_bytes() * 2)
    elif kind == "gzip":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.jpg"))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"not a tar at all\n" * 100)
    elif kind == "global path":
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "all"}) as tar:
            tar.addfile(tarfile.TarInfo("a.jpg"))
    else:
        write_tar(path, members_, tarfile.PAX_FORMAT, **{"GNU.sparse.major": "1"})


SECOND = 512 + -(-len(pictures(1)[0]) // 512) * 512


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("twice", r"sample `000000002` has two members with the suffix `jpg`"),
        ("apart", r"sample `000000001`, which began at byte [\d,]+, goes on after other samples\n  hint: .*--sort=name"),
        ("joined", r"bytes behind the archive's end"),
        ("gzip", r"byte 0: compressed by gzip"),
        ("empty", r"byte 0: the archive is cut short"),
        ("text", r"byte 0: no tar header"),
        ("global path", r"byte 0: a global header that gives every member one path or size"),
        ("sparse", r"a sparse file, which has its holes left out\n  hint: pack it again without `--sparse`"),
    ],
)
def test_a_tar_that_cannot_be_indexed_is_named(kind: str, message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", pairs(1))
    damaged(kind, tmp_path / "00001.tar")
    with pytest.raises(ConfigError, match=rf"00001.tar: (byte [\d,]+: )?{message}"):
        index_folder(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar"]


@pytest.mark.parametrize("checksums", [False, True])
def test_a_tar_that_is_cut_anywhere_is_an_error_at_that_byte(checksums: bool, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "0.tar", [("a.jpg", b"1" * 700), ("a.txt", b"22"), ("b.txt", b"3")]).read_bytes()
    end = whole.rindex(b"3") + 511 & -512
    for size in range(1, end + 1, 100):
        (tmp_path / "0.tar").write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"0.tar: byte [\d,]+: the archive is cut short") as error:
            index_folder(str(tmp_path), checksums=checksums)
        byte = int(str(error.value).partition("byte ")[2].partition(":")[0].replace(",", ""))
        assert byte in (0, 1536, 2560, 3584)
        assert byte + 512 > size
    (tmp_path / "0.tar").write_bytes(whole[:3584])
    with pytest.raises(ConfigError, match=r"byte 3,584: the archive is cut short"):
        index_folder(str(tmp_path))


@pytest.mark.parametrize("byte", [0, 4, 100, 124, 130, 148, 156, 257, 345, 511])
@pytest.mark.parametrize("member", [0, 1, 60])
def test_one_wrong_bit_in_a_header_is_found_there(member: int, byte: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(30))
    with tarfile.open(path) as tar:
        start = tar.getmembers()[member].offset
    flipped(path, start + byte)
    # A size that grew may hide headers; then the first thing wrong is still this header's checksum.
    with pytest.raises(ConfigError, match=rf"0.tar: byte {start:,}: (this header's checksum is wrong|no tar header)"):
        index_folder(str(tmp_path))


def test_all_damaged_tars_are_named_at_once(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02d}.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ConfigError, match=r"(?s)00.tar: byte 0.*09.tar: byte 0.*and 2 tars more.*move what is no good"):
        index_folder(str(tmp_path))


def test_a_folder_must_have_tars_with_usable_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tars here"):
        index_folder(str(tmp_path))
    write_tar(tmp_path / "a b.tar", pairs(1))
    with pytest.raises(ConfigError, match=r"`a b.tar` cannot be the name of a shard"):
        index_folder(str(tmp_path))


def test_indexing_again_finds_the_index_or_says_what_changed(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(2))
    made = index_folder(str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = index_folder(str(tmp_path))
    assert (made.made, found.made) == (True, False)
    assert (found.samples, found.blocks, found.splits) == (made.samples, made.blocks, made.splits)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(ConfigError, match=r"indexed already, without checksums\n  hint: remove corpus.json and index/"):
        index_folder(str(tmp_path), checksums=True)
    write_tar(tmp_path / "1.tar", pairs(1))
    with pytest.raises(ConfigError, match=r"1.tar came, went or changed after the folder was indexed"):
        index_folder(str(tmp_path))


def test_what_a_killed_attempt_left_is_replaced_but_no_other_listing(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(2))
    index_folder(str(tmp_path))
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "corpus.json").unlink()
    (tmp_path / "index/samples.npy").unlink()
    (tmp_path / "index/samples.npy").write_bytes(b"half")
    index_folder(str(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == whole
    (tmp_path / "corpus.json").unlink()
    (tmp_path / "sizes.json").unlink()
    (tmp_path / "sizes.json").write_text('{"0.tar":2}', encoding="utf-8")  # as open_clip's users write it
    index_folder(str(tmp_path))
    assert (tmp_path / "sizes.json").read_text(encoding="utf-8") == '{"0.tar":2}'
    (tmp_path / "corpus.json").unlink()
    (tmp_path / "sizes.json").write_text('{"0.tar": 3}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"sizes.json exists and does not list these tars"):
        index_folder(str(tmp_path))


def test_the_same_tars_give_the_same_index_wherever_they_lie(tmp_path: Path) -> None:
    store = open_store("memory://same-index")
    (tmp_path / "a").mkdir()
    for name, form in (("0.tar", tarfile.PAX_FORMAT), ("1.tar", tarfile.USTAR_FORMAT), ("val-1.tar", tarfile.GNU_FORMAT)):
        path = write_tar(tmp_path / "a" / name, [*pairs(5), ("a/b.txt", b""), *pairs(5, first=5)], form)
        store.create_from(name, path)
    try:
        for checksums in (False, True):
            index_folder(str(tmp_path / "a"), checksums=checksums)
            index_folder("memory://same-index", checksums=checksums)
            names = ["corpus.json", "sizes.json", "wids.json", *(f"index/{n}.npy" for n in ("samples", "blocks", "sample_ids"))]
            for name in names:
                assert store.read(name) == (tmp_path / "a" / name).read_bytes(), name
                store.delete(name)
                (tmp_path / "a" / name).unlink()
    finally:
        fsspec.filesystem("memory").rm("/same-index", recursive=True)


class Counted:
    """Bytes that count how many of them are asked for."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.bytes = data, 0

    def __getitem__(self, place: slice) -> bytes:
        found = self.data[place]
        self.bytes += len(found)
        return found


def big_tar(path: Path, num: int) -> Path:
    """Write a tar of `num` members of 600 bytes; tarfile makes one header of each kind, the number and the sum are ours."""
    heads = {}
    for suffix in ("jpg", "txt"):
        info = tarfile.TarInfo(f"000000000.{suffix}")
        info.size = 600
        heads[suffix] = info.tobuf(tarfile.USTAR_FORMAT)
    with path.open("wb") as file:
        for number in range(num // 2):
            name = b"%09d" % number
            for head in heads.values():
                total = int(head[148:154], 8) + sum(name) - 9 * ord("0")
                file.write(name + head[9:148] + b"%06o\0 " % total + head[156:] + bytes(1024))
        file.write(bytes(1024))
    return path


def test_only_headers_are_read(tmp_path: Path) -> None:
    num = 100_000
    path = big_tar(tmp_path / "0.tar", num)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        counted, started = Counted(mapped), time.process_time()
        index = TarIndex("0.tar").fill(counted)
        seconds = time.process_time() - started
    assert counted.bytes == 512 * (num + 2)  # each header, and the two blocks of the end
    assert len(index.samples) == num // 2
    assert len(index.blocks) == num
    assert num / seconds > 30_000  # a tenth of what it does on a slow machine: to notice a header parsed twice or worse


def test_a_window_on_a_remote_tar_skips_large_members() -> None:
    memory = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.mp4")
            info.size = 1 << 20
            tar.addfile(info, io.BytesIO(bytes(1 << 20)))
    memory.pipe_file("/window/0.tar", buffer.getvalue())
    try:
        window = Window(open_store("memory://window"), "0.tar")
        assert TarIndex("0.tar").fill(window).samples["length"].tolist() == [2049] * 4
        assert window.read < 6 * (64 << 10)
    finally:
        memory.rm("/window", recursive=True)


def test_verify_says_that_there_are_no_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmdata", *args])
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0), "".join(capsys.readouterr())

    path = write_tar(tmp_path / "0.tar", pairs(2))
    code, said = call("index", str(tmp_path))
    assert code == 0
    assert "indexed: 1 tars, 2 samples (train 2), 4 blocks" in said
    assert "without checksums" in said
    code, said = call("verify", str(tmp_path))
    assert code == 1
    assert "1 of 1 shards have no checksums" in said
    assert "mmdata index FOLDER --checksums" in said
    assert "not checked: 1 shards" in said
    for name in ("corpus.json", "index/samples.npy", "index/blocks.npy", "index/sample_ids.npy"):
        (tmp_path / name).unlink()
    assert call("index", str(tmp_path), "--checksums")[0] == 0
    code, said = call("verify", str(tmp_path))
    assert (code, said.startswith("whole: 1 shards, 2 samples")) == (0, True)
    flipped(path, 700)
    code, said = call("verify", str(tmp_path))
    assert code == 1
    assert "0.tar: its SHA-256 is not the manifest's; damaged: sample 0" in said
    with pytest.raises(RunError, match="sample 0 at byte 0 is not what was written"):
        open_corpus(str(tmp_path)).read(0)


def test_a_shard_that_changed_its_length_is_refused_without_checksums(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", pairs(2))
    index_folder(str(tmp_path))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-512])
    problems = verify(str(tmp_path)).problems
    assert [(problem.file, problem.what) for problem in problems] == [
        ("0.tar", f"{size - 512:,} bytes, the manifest says {size:,}")
    ]
    with pytest.raises(RunError, match="the manifest says"):
        open_corpus(str(tmp_path)).read(0)


def test_members_of_damaged_bytes_are_refused() -> None:
    info = tarfile.TarInfo("a.txt")
    info.size = 700
    data = info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    assert members(data) == [("txt", bytes(700))]
    with pytest.raises(RunError, match="holds no tar header after 1536 bytes"):
        members(data + b"x" * 512)
    with pytest.raises(RunError, match="holds no tar header after 1536 bytes: the archive is cut short"):
        members(data[:-512])


def test_a_name_ends_at_its_first_nul(tmp_path: Path) -> None:
    data = b""
    for name in (b"a\0b.jpg", b"b.txt\0.jpg", b"c.txt", b"d.txt"):
        info = tarfile.TarInfo("x" * len(name))
        head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
        total = int(head[148:154], 8) + sum(name) - sum(head[: len(name)])
        head[: len(name)], head[148:156] = name, b"%06o\0 " % total
        data += head
    assert members(data) == [("txt", b"")] * 3
    (tmp_path / "0.tar").write_bytes(data + bytes(1024))
    index_folder(str(tmp_path))
    assert read_all(open_corpus(str(tmp_path))) == [{"txt": b""}] * 3 == [s for _, s in seen_by_webdataset(tmp_path / "0.tar")]


def test_sizes_may_be_256_based() -> None:
    info = tarfile.TarInfo("a.bin")
    info.size = 9 << 30
    data = info.tobuf(tarfile.GNU_FORMAT)
    assert data[124] == 0x80
    walk = iter(Walk(data))
    assert next(walk) == (b"a.bin", 512, 9 << 30)


def test_a_sample_that_an_index_cannot_hold_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "0.tar").open("wb") as file:
        info = tarfile.TarInfo("a.mp4")
        info.size = 5 << 30
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + info.size + 1024)  # holes: nothing of it is on the disk
    with pytest.raises(ConfigError, match=r"0.tar: byte 0: an image, a video or a text that reaches 4 GiB"):
        index_folder(str(tmp_path))


def test_index_files_are_as_numpy_saves_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(3))
    index_folder(str(tmp_path))
    for name in ("samples", "blocks", "sample_ids"):
        data = (tmp_path / f"index/{name}.npy").read_bytes()
        again = io.BytesIO()
        np.save(again, np.load(io.BytesIO(data)))
        assert again.getvalue() == data
