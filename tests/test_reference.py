"""References: what a corpus or an eval set keeps of its samples, how it is read back, damaged, and rid of samples."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmdata.engine import Runner
from mmdata.errors import ConfigError, RunError
from mmdata.executors import InlineExecutor
from mmdata.plan import Plan
from mmdata.schema import CAPTION, PAYLOAD, ROW
from mmdata.shards.corpus import open_corpus
from mmdata.shards.reference import open_reference
from mmdata.shards.reference_files import take_out
from mmdata.shards.sealed import seal
from mmdata.shards.verify import verify
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.comparing import opened
from mmdata.stages.fingerprint import Fingerprint
from mmdata.stages.measure import Measure
from mmdata.stages.reference import ReferenceSink
from mmdata.stages.shards import Shards, sample_records
from mmdata.stages.sources import Folder
from mmdata.stages.verbs import Sink
from mmdata.storage import open_store

IMAGES = Path(__file__).parent.parent / "mmdata/demo/data/images"
COLUMNS = ("phash", "pdq", "phash_views", "pixels", "folded(text)", "clip_score_image_embedding")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve real pictures with captions, the last without."""
    folder = tmp_path_factory.mktemp("images")
    for number, path in enumerate(sorted(IMAGES.iterdir())[:12]):
        shutil.copy(path, folder / f"{number:02}{path.suffix}")
        if number < 11:
            (folder / f"{number:02}.txt").write_text(f"Picture  {number}", encoding="utf-8")
    return folder


def run(home: Path, images: Path, sink: Sink, rows: int = 5) -> str:
    stages = (Measure(), Fingerprint(kinds=("phash", "pdq", "pixels"), views=("flip",)),
              ClipScore.model_validate({"scorer": {"fake": True}, "embeddings": ["image"]}))  # fmt: skip
    source = Folder(path=str(images), licence="CC0-1.0", partition_rows=rows)
    result = Runner(Plan(name="past", source=(source,), stages=stages, sink=sink), str(home)).execute(
        InlineExecutor(), quiet=True
    )
    assert result.corpus is not None
    return result.corpus


@pytest.fixture(scope="module")
def corpus(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three shards with a reference."""
    return Path(run(tmp_path_factory.mktemp("run"), images, Shards(samples=5, reference=COLUMNS)))


def test_a_corpus_keeps_what_later_ones_are_compared_with(corpus: Path) -> None:
    reference, whole = open_reference(str(corpus)), open_corpus(str(corpus))
    assert (reference.facts.rows, [part.rows for part in reference.facts.parts]) == (12, [5, 5, 2])
    # Rows lie in the order of the shards' samples.
    names = [name for part in range(3) for name in reference.names(part, np.arange(reference.facts.parts[part].rows))]
    assert names == [(whole.sample_id(place), 0) for place in range(12)]
    assert {name: (column.kind, column.width) for name, column in reference.facts.columns.items()} == {
        "phash": ("hash", 1), "pdq": ("hash", 4), "phash_views": ("hash", 1), "pixels": ("digest", 2),
        "folded(text)": ("digest", 2), "clip_score_image_embedding": ("embedding", 8),
    }  # fmt: skip
    assert reference.column("clip_score_image_embedding").model == "a hash (fake)"
    assert reference.column("phash").meaning.startswith("low frequencies above their median")
    first = reference.items(0, "phash")
    hashes = [json.loads(whole.read(place)["json"])["phash"] for place in range(5)]
    assert first.values[:, 0].tolist() == hashes
    views = reference.items(0, "phash_views")
    assert views.owner_M.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert views.values[::2, 0].tolist() == hashes
    texts = [len(reference.items(part, "folded(text)").owner_M) for part in range(3)]
    assert sum(texts) == 11  # one has no caption
    assert isinstance(reference.items(0, "clip_score_image_embedding").values.base, np.memmap)


def test_a_reference_is_part_of_its_corpus(corpus: Path, tmp_path: Path) -> None:
    assert verify(str(corpus)).whole
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    damaged = copy / "reference/pdq.00001.npy"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    (problem,) = verify(str(copy)).problems
    assert "reference/pdq.00001.npy: its SHA-256 is not that of reference.json" in str(problem)
    with pytest.raises(RunError, match=r"pdq\.00001\.npy: its SHA-256 is not that of reference\.json[\s\S]*hint: copy it again"):
        open_reference(str(copy)).items(1, "pdq")
    damaged.write_bytes(data[:-8])
    with pytest.raises(RunError, match=r"pdq\.00001\.npy: 280 bytes, reference\.json says 288"):
        open_reference(str(copy)).items(1, "pdq")
    damaged.unlink()
    with pytest.raises(RunError, match=r"pdq\.00001\.npy: missing"):
        open_reference(str(copy)).items(1, "pdq")
    facts = copy / "reference/reference.json"
    facts.write_text(facts.read_text(encoding="utf-8").replace('"rows": 12', '"rows": 13'), encoding="utf-8")
    assert any("reference/reference.json: its SHA-256 is not the manifest's" in str(item) for item in verify(str(copy)).problems)
    with pytest.raises(RunError, match=r"reference\.json: does not match its own digest"):
        open_reference(str(copy))
    with pytest.raises(ConfigError, match=r"no reference: it has no reference\.json[\s\S]*hint: `mmdata reference` makes one"):
        open_reference(str(tmp_path))
    with pytest.raises(ConfigError, match=r"reference `past` .* has no `sscd`[\s\S]*hint: it has phash, pdq"):
        open_reference(str(corpus)).column("sscd")


def test_a_name_that_leads_out_of_the_folder_is_refused(corpus: Path, tmp_path: Path) -> None:
    facts = json.loads((corpus / "reference/reference.json").read_text(encoding="utf-8"))
    facts["parts"][0]["files"]["ids"]["file"] = "../ids.00000.npy"
    (tmp_path / "reference.json").write_text(json.dumps(seal(facts)), encoding="utf-8")
    with pytest.raises(RunError, match=r"reference\.json: `parts\.0\.files\.ids\.file`: String should match pattern"):
        open_reference(str(tmp_path))


def test_the_same_samples_make_the_same_files(images: Path, corpus: Path, tmp_path: Path) -> None:
    again = Path(run(tmp_path, images, Shards(samples=5, reference=COLUMNS, write="scatter"), rows=12))
    for path in sorted(corpus.glob("reference/*.npy")):
        assert path.read_bytes() == (again / "reference" / path.name).read_bytes()


def test_a_reference_alone_needs_no_media(images: Path, tmp_path: Path) -> None:
    home = tmp_path / "run"
    made = Path(run(home, images, ReferenceSink(columns=("phash", "clip_score_image_embedding"))))
    reference = open_reference(str(home))  # a run is as good as the folder
    assert (reference.name, reference.facts.licences, reference.facts.rows) == ("past", {images.name: "CC0-1.0"}, 12)
    assert sorted(path.name for path in made.iterdir()) == ["reference"]
    vectors = np.concatenate([reference.items(part, "clip_score_image_embedding").values for part in range(3)])
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-3)


def test_a_document_keeps_what_each_of_its_blocks_has() -> None:
    names = ["b" * 32, "a" * 32, "b" * 32, "b" * 32]
    payload = {"set": "s", "tar": "t", "offset": 0, "size": 10, "sha256": "0" * 64, "trusted": True}
    table = pa.table({
        ROW: [0, 1, 2, 3], "sample_id": names, "position": pa.array([2, 0, 0, 1], pa.int32()),
        "document": [True, False, True, True], "url": pa.nulls(4, pa.string()), "text": ["third", "alone", None, "second"],
        "media": [None, "image", "image", None], "source": ["x"] * 4, "captions": pa.nulls(4, pa.list_(CAPTION)),
        "payload": pa.array([None, payload, payload, None], PAYLOAD), "phash": pa.array([None, 5, 7, None], pa.uint64()),
    })  # fmt: skip
    records = sample_records(table, Shards(reference=("phash", "folded(text)")))
    kept = records.column("reference").to_pylist()
    assert [[(row["sample_id"][0], row["position"], row["phash"]) for row in rows] for rows in kept] == [
        [("a", 0, 5)], [("b", 0, 7), ("b", 1, None), ("b", 2, None)],
    ]  # fmt: skip
    assert [row["folded(text)"] for row in kept[1]] == [None, *(sha256(text).digest()[:16] for text in (b"second", b"third"))]


def test_samples_are_taken_out_without_a_trace(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(corpus / "reference", copy)
    before = open_reference(str(copy))
    gone = [before.names(0, np.array([1, 3]))[0], before.names(2, np.array([0]))[0]]
    hashes = [before.items(0, "phash").values[1].tobytes(), before.items(2, "phash").values[0].tobytes()]
    vectors = [before.items(0, "clip_score_image_embedding").values[1].tobytes()]
    assert take_out(str(copy), [name for name, _ in gone]) == 2
    after = open_reference(str(copy))
    assert (after.facts.rows, after.facts.generation, after.digest != before.digest) == (10, 2, True)
    files = [path.read_bytes() for path in copy.iterdir()]
    secrets = [bytes.fromhex(name) for name, _ in gone] + hashes + vectors
    assert not any(secret in data for data in files for secret in secrets)
    # What stays is what it was.
    keep = np.array([0, 2, 3, 4])
    assert after.names(0, np.arange(4)) == before_names(corpus, keep)
    old, new = (item.items(0, "phash_views") for item in (open_reference(str(corpus)), after))
    assert new.owner_M.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (new.values == old.values[np.isin(old.owner_M, keep)]).all()
    assert take_out(str(copy), [name for name, _ in gone]) == 0
    assert open_reference(str(copy)).digest == after.digest


def before_names(corpus: Path, rows: np.ndarray) -> list[tuple[str, int]]:
    return open_reference(str(corpus)).names(0, rows)


def test_a_reference_in_a_store_is_read_a_file_at_a_time(corpus: Path) -> None:
    store = open_store("memory://past")
    for path in sorted((corpus / "reference").iterdir()):
        store.put(f"reference/{path.name}", path.read_bytes())
    far, near = opened("memory://past"), open_reference(str(corpus))
    assert far.digest == near.digest
    assert opened("memory://past") is far
    assert (far.items(2, "pdq").values == near.items(2, "pdq").values).all()
    assert far.names(1, np.arange(5)) == near.names(1, np.arange(5))
    store.put("reference/pdq.00001.npy", b"x" * store.size("reference/pdq.00001.npy"))
    with pytest.raises(RunError, match=r"memory://past/reference/pdq\.00001\.npy: its SHA-256 is not that of reference\.json"):
        open_reference("memory://past").items(1, "pdq")
    assert take_out("memory://past", [near.names(2, np.array([0]))[0][0]]) == 1
    assert opened("memory://past").facts.rows == 11


def test_columns_that_cannot_be_kept_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a reference of `sscd`, which no stage writes[\s\S]*hint: columns: "):
        run(tmp_path, images, ReferenceSink(columns=("sscd",)))
    with pytest.raises(ConfigError, match=r"a reference of `payload`, which is struct"):
        run(tmp_path, images, Shards(reference=("payload",)))
    with pytest.raises(ValueError, match=r"columns folded\(text\), folded-text would lie in files of one name"):
        ReferenceSink(columns=("folded(text)", "folded-text"))
