"""Every export is read back by the loader whose format it is: every sample once, with the bytes that the corpus has."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmdata.cli.main import main
from mmdata.errors import BusyError, ConfigError, RunError
from mmdata.shards import Corpus, index_folder, open_corpus
from mmdata.shards.export import FORMATS, export_corpus
from mmdata.shards.export.place import SUFFIX, finished_folder
from tests.conftest import encode
from tests.corpus import draw, make_corpus
from tests.mixed import HOSTILE, expected, mixed_corpus, pair_row, write_rows

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return mixed_corpus(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("pairs"), num=40, val=0.2)


def needs(form: str) -> ModuleType:
    """Return the package of a format; without it the test is skipped, with the reason."""
    try:
        return import_module(FORMATS[form])
    except ImportError as error:
        pytest.skip(f"mmdata[{form}] is not installed here: {error}")


def ids(url: str, split: str) -> list[str]:
    corpus = open_corpus(url)
    number = corpus.splits.index(split)
    return [corpus.sample_id(index) for index in np.flatnonzero(corpus.samples["split"] == number).tolist()]


def check_flat(sample: dict[str, Any], members: Members) -> None:
    """Compare a flat sample with the members that the corpus has."""
    assert sample["json"].encode() == members["json"]
    facts = json.loads(members["json"])
    kinds = {"image": ("jpg", "png"), "video": ("mp4",)}
    if "blocks" in facts:
        check_document(sample, members, facts)
        return
    assert sample["text"].encode() == members["txt"]
    assert json.loads(sample["blocks"]) == []
    for kind, suffixes in kinds.items():
        assert sample[kind] == next((members[suffix] for suffix in suffixes if suffix in members), b"")


def check_document(sample: dict[str, Any], members: Members, facts: dict[str, Any]) -> None:
    assert (sample["text"], sample["image"], sample["video"]) == ("", b"", b"")
    blocks = json.loads(sample["blocks"])
    assert [(block["type"], block.get("text")) for block in blocks] == [
        (block["type"], block.get("text")) for block in facts["blocks"]
    ]
    for block in blocks:
        if block["type"] == "image":
            data = sample["media"][block["offset"] : block["offset"] + block["size"]]
            assert data == members[f"{block['position']}.{block['suffix']}"]


def check_splits(url: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Compare what a loader gave, split by split, with the corpus: every sample once."""
    members = expected(url)
    for split in open_corpus(url).splits:
        assert [sample["sample_id"] for sample in found[split]] == ids(url, split)
        for sample in found[split]:
            check_flat(sample, members[sample["sample_id"]])


def test_streaming_reads_what_its_writer_wrote(mixed: str, tmp_path: Path) -> None:
    streaming = needs("mds")
    done = export_corpus("mds", mixed, str(tmp_path / "out"))
    assert done.samples == 40
    found = {}
    for split in ("train", "val"):
        data = streaming.StreamingDataset(
            local=str(tmp_path / "out"), split=split, shuffle=False, batch_size=1, validate_hash="xxh3_64"
        )
        found[split] = [data[place] for place in range(data.num_samples)]
    check_splits(mixed, found)


def test_litdata_reads_what_its_writer_wrote(mixed: str, tmp_path: Path) -> None:
    litdata = needs("litdata")
    export_corpus("litdata", mixed, str(tmp_path / "out"))
    found = {split: list(litdata.StreamingDataset(str(tmp_path / "out" / split))) for split in ("train", "val")}
    check_splits(mixed, found)


def test_a_caption_that_names_a_file_is_a_text_for_litdata(tmp_path: Path) -> None:
    """The first sample decides how LitData writes a column, and its own serializers read a file that a text names."""
    litdata = needs("litdata")
    secret = tmp_path / "secret.tif"
    secret.write_bytes(b"what nobody asked for")
    url = write_rows(tmp_path, [pair_row(tmp_path, 0) | {"text": str(secret)}])
    export_corpus("litdata", url, str(tmp_path / "out"))
    (index,) = (tmp_path / "out").rglob("index.json")
    assert json.loads(index.read_text(encoding="utf-8"))["config"]["data_format"] == ["str", "str", "str", "bytes"]
    (sample,) = litdata.StreamingDataset(str(index.parent))
    assert sample["text"] == str(secret)


def of_energon(energon: ModuleType, folder: Path, split: str, *, decoded: bool = False) -> list[Any]:
    """Return every sample of a split once, as Energon's loader gives it: by its key, with its bytes unless decoded."""

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc, name-defined]
        cookers = (energon.Cooker(energon.stateless(lambda sample: sample)),)

    if not decoded:
        Encoder.decoder = None
    config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    data = energon.get_val_dataset(folder, split_part=split, worker_config=config, batch_size=None, task_encoder=Encoder())
    return list(energon.get_savable_loader(data))


def members_of(corpus: Corpus, key: str) -> Members:
    """Return the members of a sample by its key in the tars: five digits of the shard, six of the sample."""
    return corpus.read(int(corpus.first_samples[int(key[:5])]) + int(key[5:]))


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_energon_reads_the_corpuss_own_tars(tmp_path: Path) -> None:
    energon = needs("energon")
    out, url = tmp_path / "out", write_rows(tmp_path, [pair_row(tmp_path, number) for number in range(40)])
    export_corpus("energon", url, str(out))
    corpus = open_corpus(url)
    for shard in corpus.shards:
        assert (out / shard).stat().st_ino == (Path(url) / shard).stat().st_ino
    for split in ("train", "val"):
        samples = of_energon(energon, out, split)
        assert len({sample.__key__ for sample in samples}) == len(samples) == len(ids(url, split))
        for sample in samples:
            members = members_of(corpus, sample.__key__)
            assert sample.image == members.get("jpg", members.get("png"))
            assert sample.caption == members["txt"]
    decoded = of_energon(energon, out, "val", decoded=True)[0]
    assert type(decoded) is energon.CaptioningSample
    assert (decoded.image.shape[0], decoded.image.shape[2], type(decoded.caption)) == (3, 32, str)


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_energon_leaves_a_mixed_corpus_to_a_cooker(mixed: str, tmp_path: Path) -> None:
    energon = needs("energon")
    export_corpus("energon", mixed, str(tmp_path / "out"))
    corpus = open_corpus(mixed)
    for split in ("train", "val"):
        samples = of_energon(energon, tmp_path / "out", split)
        assert len({sample["__key__"] for sample in samples}) == len(samples) == len(ids(mixed, split))
        for sample in samples:
            parts = {name: data for name, data in sample.items() if not name.startswith("__")}
            assert parts == members_of(corpus, sample["__key__"])


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_energon_takes_foreign_tars_that_spell_jpeg_their_own_way(tmp_path: Path) -> None:
    energon = needs("energon")
    foreign(tmp_path / "tars")
    out = tmp_path / "out"
    export_corpus("energon", str(tmp_path / "tars"), str(out))
    samples = of_energon(energon, out, "train")
    assert [sample.caption for sample in samples] == [b"zero", b"one"]
    assert {sample.image[:3] for sample in samples} == {b"\xff\xd8\xff"}


def foreign(folder: Path, *more: tuple[str, bytes]) -> None:
    """Write a tar as a stranger would, and index it: two images with a text each, and whatever else."""
    folder.mkdir()
    image = encode(draw("red", "bar"), "JPEG")
    members = [("a.jpeg", image), ("a.txt", b"zero"), ("b.jpeg", image), ("b.txt", b"one"), *more]
    with tarfile.open(folder / "own.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_folder(str(folder))


def test_foreign_samples_have_a_form_too(tmp_path: Path) -> None:
    image = encode(draw("red", "bar"), "JPEG")
    foreign(
        tmp_path / "tars", ("c.0.jpg", image), ("c.1.jpg", image[:-1]), ("c.txt", b"two"), ("d.cls", b"7"), ("d.txt", b"three")
    )
    export_corpus("parquet", str(tmp_path / "tars"), str(tmp_path / "out"))
    (path,) = (tmp_path / "out/data").iterdir()
    pair, _, document, bare = pq.read_table(path).to_pylist()
    assert (pair["text"], pair["image"]["bytes"], pair["json"]) == ("zero", image, "{}")
    assert [(block["type"], block.get("text")) for block in json.loads(document["blocks"])] == [
        ("image", None), ("image", None), ("text", "two"),
    ]  # fmt: skip
    assert [media["bytes"] for media in document["media"]] == [image, image[:-1]]
    assert (bare["text"], bare["image"], bare["blocks"]) == ("three", None, None)


def test_energon_copies_and_checks_tars_that_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("energon")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    url = write_rows(tmp_path, [pair_row(tmp_path, number) for number in range(3)])
    monkeypatch.setattr(os, "link", refuse)
    export_corpus("energon", url, str(tmp_path / "out"))
    shard = open_corpus(url).shards[0]
    assert (tmp_path / "out" / shard).read_bytes() == (Path(url) / shard).read_bytes()
    (Path(url) / shard).write_bytes((Path(url) / shard).read_bytes() + bytes(10_240))
    with pytest.raises(RunError, match=rf"{shard}: it is not what the manifest says"):
        export_corpus("energon", url, str(tmp_path / "again"))


def test_datasets_reads_the_parquet(mixed: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed here")
    export_corpus("parquet", mixed, str(tmp_path / "out"))
    data = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(data) == {"train", "val"}
    assert isinstance(data["train"].features["image"], datasets.Image)
    members = expected(mixed)
    for split in data:
        raw = data[split].cast_column("image", datasets.Image(decode=False))
        assert raw["sample_id"][:] == ids(mixed, split)
        for row in raw.select_columns(["sample_id", "text", "json", "image", "video"]):
            check_parquet(row, members[row["sample_id"]])
    rows = [row for split in data for row in data[split]]
    assert next(row["image"] for row in rows if row["image"] is not None).size[0] == 32
    assert [[image.size for image in row["media"]] for row in rows if row["blocks"] is not None] == [[(32, 32)] * 2] * 2


def test_the_parquet_has_every_sample_in_bounded_groups(mixed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdata.shards.export.parquet.GROUP_BYTES", 4_000)
    export_corpus("parquet", mixed, str(tmp_path / "out"))
    members, seen = expected(mixed), []
    names = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert names == [*(f"train-{number:05d}-of-00002.parquet" for number in range(2)), "val-00000-of-00001.parquet"]
    for name in names:
        file = pq.ParquetFile(tmp_path / "out/data" / name)
        assert file.num_row_groups > 1
        group = file.metadata.row_group(0)
        codecs = {group.column(place).path_in_schema: group.column(place).compression for place in range(group.num_columns)}
        assert (codecs["json"], codecs["image.bytes"]) == ("ZSTD", "UNCOMPRESSED")
        for row in file.read().to_pylist():
            seen.append(row["sample_id"])
            check_parquet(row, members[row["sample_id"]])
            check_plain(row, json.loads(row["json"]))
    assert seen == [*ids(mixed, "train"), *ids(mixed, "val")]


def check_parquet(row: dict[str, Any], members: Members) -> None:
    facts = json.loads(members["json"])
    assert row["json"].encode() == members["json"]
    assert row["text"] == facts.get("caption")
    image = row["image"] and row["image"]["bytes"]
    assert image == members.get("jpg", members.get("png"))
    assert row["video"] == members.get("mp4")


def check_plain(row: dict[str, Any], facts: dict[str, Any]) -> None:
    for name in ("source", "url", "width", "clip_score", "<b>phash"):
        assert row[name] == (None if "blocks" in facts else facts.get(name))
    if "blocks" in facts:
        blocks = json.loads(row["blocks"])
        assert [block["position"] for block in blocks] == [0, 1, 3, 4]
        assert [row["media"][block["media"]]["bytes"][:4] for block in blocks if "media" in block] == [b"\x89PNG"] * 2


def test_every_export_says_which_corpus_it_is(pairs: str, tmp_path: Path) -> None:
    export_corpus("parquet", pairs, str(tmp_path / "out"))
    about = json.loads((tmp_path / "out/mmdata.json").read_text(encoding="utf-8"))
    assert (about["corpus"], about["samples"]) == (open_corpus(pairs).digest, 40)


def test_a_folder_that_is_not_empty_is_left_alone(pairs: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="out is not an empty folder"):
        export_corpus("parquet", pairs, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="exports are written to a local disk"):
        export_corpus("parquet", pairs, "s3://bucket/out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    url = make_corpus(tmp_path, num=6)
    shard = Path(url) / open_corpus(url).shards[0]
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    with pytest.raises(RunError, match="sample 0 at byte 0 is not what was written"):
        export_corpus("parquet", url, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / f"out{SUFFIX}").exists()


def test_the_command_takes_a_run_folder_and_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmdata", "export", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    make_corpus(tmp_path, num=12)
    monkeypatch.setattr("mmdata.shards.counter.TICK_S", 0.0)
    code, out, err = call("parquet", str(tmp_path / "run"), str(tmp_path / "out"))
    assert (code, out.startswith("12 samples written: 4 files, 0.0 MB in ")) == (0, True)
    assert err.splitlines() == [f"{num} of 12 samples written" for num in (4, 8, 12)]
    code, _, err = call("parquet", str(tmp_path / "run"), str(tmp_path / "out"))
    assert (code, "is not an empty folder" in err) == (2, True)
    code, _, err = call("mds", "corpus", "out", "--output-format", "files")
    assert (code, "--output-format is not for `mds`" in err) == (2, True)


def test_an_export_that_is_killed_leaves_no_folder_and_the_next_one_is_whole(pairs: str, tmp_path: Path) -> None:
    code = (
        "import os, signal; from mmdata.shards import counter, export; counter.TICK_S = 0;"
        f"export.export_corpus('parquet', {pairs!r}, {str(tmp_path / 'out')!r}, lambda *_: os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert (tmp_path / f"out{SUFFIX}/data").exists()
    (tmp_path / f"out{SUFFIX}/left").write_text("by the dead", encoding="utf-8")
    assert export_corpus("parquet", pairs, str(tmp_path / "out")).samples == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", "mmdata.json"]


def test_two_exports_do_not_share_a_folder(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with finished_folder(out) as folder:
        (folder / "mine").write_text("x", encoding="utf-8")
        with pytest.raises(BusyError, match="another export is writing there"), finished_folder(out):
            pass
    assert [path.name for path in Path(out).iterdir()] == ["mine"]


def test_an_empty_corpus_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the corpus has no samples"):
        export_corpus("parquet", write_rows(tmp_path, []), str(tmp_path / "out"))


def test_a_missing_package_names_its_extra(pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streaming", None)
    with pytest.raises(ConfigError, match=r"pip install 'mmdata\[mds\]'"):
        export_corpus("mds", pairs, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="did you mean `parquet`"):
        export_corpus("parket", pairs, str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_hostile_captions_keep_their_bytes(mixed: str, tmp_path: Path) -> None:
    export_corpus("parquet", mixed, str(tmp_path / "out"))
    texts = [text for path in (tmp_path / "out/data").iterdir() for text in pq.read_table(path).column("text").to_pylist()]
    assert texts.count(HOSTILE) == 1
    assert texts.count("") == 1
    assert texts.count(None) == 3  # one pair without a text, two documents
