"""The peer of `benchmarks/loader.py`: LitData, in its own chunks of 64 MB."""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import time

import litdata
import numpy as np
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import Cache
from loader_peer import BATCH, Collate, count_pixels, members, pillow, run, simplejpeg, timed


def prepare(tars: str, folder: str) -> None:
    cache = Cache(folder, chunk_bytes="64MB")
    for number, sample in enumerate(members(tars)):
        cache[number] = sample
    cache.done()
    cache.merge()


class Pairs(StreamingDataset):
    """Decodes what is read, in the worker."""

    def __init__(self, folder: str, how: str) -> None:
        super().__init__(folder, shuffle=True)
        self.decoder = simplejpeg if how.startswith("same") else _own

    def __getitem__(self, index: object) -> tuple[np.ndarray, str]:
        sample = super().__getitem__(index)
        return self.decoder(sample["jpg"]), bytes(sample["txt"]).decode()


def _own(data: bytes) -> np.ndarray:
    """Decode as LitData's `JPEGSerializer` does without torchvision: by Pillow."""
    return pillow(data)


def decoded(folder: str, workers: int, how: str) -> None:
    dataset = Pairs(folder, how)
    options = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=Collate(how), **options)
    timed(lambda: count_pixels(loader), litdata.__version__)


def first(folder: str, _workers: int, _how: str) -> None:
    started = time.perf_counter()
    dataset = StreamingDataset(folder, shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=list)
    batch = next(iter(loader))
    seconds = time.perf_counter() - started
    print(f'{{"seconds": {seconds}, "samples": {len(batch)}, "version": "{litdata.__version__}"}}')


if __name__ == "__main__":
    run(prepare, {"decoded": decoded, "first": first})
