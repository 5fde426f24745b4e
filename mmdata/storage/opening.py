"""From a url to its store."""

import os
from pathlib import Path

from mmdata.errors import ConfigError
from mmdata.storage.faulty import FaultyObjectStore, FaultyStore, faults_of
from mmdata.storage.local import LocalStore
from mmdata.storage.objects import ObjectStore
from mmdata.storage.parquet_rows import SCHEME, ParquetRows
from mmdata.storage.store import Store


def open_store(url: str) -> Store:
    """Return the store of a folder: a local path, or any URL that fsspec knows."""
    url = url.removeprefix("file://")
    if url.startswith(SCHEME):
        return ParquetRows(url)
    asked = os.environ.get("MMDATA_FAULTS")
    faults = faults_of(asked) if asked else None
    if "://" not in url:
        path = str(Path(url).absolute())
        return FaultyStore(path, faults) if faults else LocalStore(path)
    try:
        return FaultyObjectStore(url, faults) if faults else ObjectStore(url)
    except (ImportError, ValueError) as error:
        scheme = url.split("://", 1)[0]
        raise ConfigError(f"cannot open {url}: {error}", hint=f"install the extra for `{scheme}`, e.g. mmdata[s3]") from error
