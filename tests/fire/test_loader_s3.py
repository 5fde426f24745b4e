"""The loader over a bucket: the stream of the disk, whatever order and however unwell the line is."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from mmdata.loader import Cache, Loader, Options
from tests.corpus import make_corpus
from tests.fire.conftest import Line


def ids(url: str, **options: Any) -> list[str]:  # noqa: ANN401
    with Loader(url, options=Options(batch_size=8, epochs=2, decode=False, **options)) as loader:
        return [sample.sample_id for batch in loader for sample in batch.items]


@pytest.mark.fault("W17")
@pytest.mark.parametrize("shuffle", ["samples", "blocks"])
def test_W17_a_corpus_in_a_bucket_streams_as_from_a_disk(tmp_path: Path, s3: Line, s3_url: str, shuffle: Any) -> None:  # noqa: ANN401
    local = make_corpus(tmp_path, num=40)
    fsspec.filesystem("s3").put(local, s3_url.removesuffix("/run") + "/corpus", recursive=True)
    url = s3_url.removesuffix("/run") + "/corpus"
    order = {"shuffle": shuffle, "block": 8}
    expected = ids(local, **order)
    assert ids(url, **order) == expected
    s3.meddle("GET", "500", times=3)
    assert ids(url, threads=4, **order) == expected
    assert ids(url, cache=Cache(tmp_path / "cache", 1 << 30), **order) == expected
