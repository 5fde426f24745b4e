"""The peer of `benchmarks/loader.py`: MosaicML Streaming, in its own MDS shards of 64 MB."""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import time

import numpy as np
import streaming
from loader_peer import BATCH, Collate, count_pixels, members, pillow, run, simplejpeg, timed
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

COLUMNS = {"jpg": "bytes", "txt": "str", "json": "bytes"}


def prepare(tars: str, folder: str) -> None:
    with MDSWriter(out=folder, columns=COLUMNS) as writer:
        for sample in members(tars):
            writer.write({**sample, "txt": sample["txt"].decode()})


class Pairs(StreamingDataset):
    """Decodes what is read, in the worker; its own `jpeg` encoding does it by Pillow too."""

    def __init__(self, folder: str, how: str) -> None:
        super().__init__(local=folder, shuffle=True, batch_size=BATCH)
        self.decoder = simplejpeg if how.startswith("same") else pillow

    def __getitem__(self, at: object) -> tuple[np.ndarray, str]:
        sample = super().__getitem__(at)
        return self.decoder(sample["jpg"]), sample["txt"]


def decoded(folder: str, workers: int, how: str) -> None:
    clean_stale_shared_memory()
    options = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    loader = DataLoader(Pairs(folder, how), batch_size=BATCH, num_workers=workers, collate_fn=Collate(how), **options)
    timed(lambda: count_pixels(loader), streaming.__version__)


def first(folder: str, _workers: int, _how: str) -> None:
    clean_stale_shared_memory()
    started = time.perf_counter()
    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    batch = next(iter(DataLoader(dataset, batch_size=BATCH, collate_fn=list)))
    seconds = time.perf_counter() - started
    print(f'{{"seconds": {seconds}, "samples": {len(batch)}, "version": "{streaming.__version__}"}}')


if __name__ == "__main__":
    run(prepare, {"decoded": decoded, "first": first})
