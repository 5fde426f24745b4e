"""Damage to a finished corpus, and what its readers say of it."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.cli.main import main
from mmdata.errors import RunError
from mmdata.loader import Loader, Options
from mmdata.shards import Corpus, verify
from mmdata.shards.sealed import seal
from mmdata.storage import digest_file

NUM = 40


@dataclass(frozen=True)
class Run:
    """A run folder of two generations, and their corpora: the same samples in another order."""

    home: Path
    first: Path
    second: Path


def loaders_error(url: Path) -> str | None:
    """Read every sample once through the loader; return its error."""
    try:
        with Loader(str(url), options=Options(batch_size=1, epochs=1)) as loader:
            assert len({batch.items[0].sample_id for batch in loader}) == NUM
    except RunError as error:
        return str(error)
    return None


def problems(url: Path) -> list[tuple[str, str]]:
    return [(problem.file, problem.what) for problem in verify(str(url)).problems]


def call(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["mmdata", *args])
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(exit_.value.code or 0), out + err


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    write(path, bytes(data))


def write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def reseal(corpus: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and give it the digest that fits."""
    facts = json.loads((corpus / "corpus.json").read_bytes())
    change(facts)
    write(corpus / "corpus.json", json.dumps(seal(facts)).encode())


def edit_index(corpus: Path, name: str, change: Callable[[np.ndarray], object], *, sealed: bool) -> None:
    """Change an index; when `sealed`, give the manifest the digest that fits."""
    path = corpus / f"index/{name}.npy"
    array = np.load(path)
    change(array)
    path.unlink()
    np.save(path, array)
    if sealed:
        reseal(corpus, lambda facts: facts["index"].update({f"index/{name}.npy": digest_file(path)}))


def sample_at(corpus: Corpus, shard: int, byte: int) -> int | None:
    """Return the sample that a byte of a shard belongs to; none holds the end of the archive."""
    for index, sample in enumerate(corpus.samples):
        if sample["shard"] == shard and sample["start"] <= byte // 512 < sample["start"] + sample["length"]:
            return index
    return None


def webdataset_notices(path: Path) -> bool:
    import tarfile

    import webdataset

    try:
        num = len(list(webdataset.WebDataset([str(path)], shardshuffle=False)))
    except tarfile.TarError:
        return True
    assert num < NUM
    return False
