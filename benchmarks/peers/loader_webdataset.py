"""The peer of `benchmarks/loader.py`: webdataset on the corpus's own tars."""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import time
from pathlib import Path

import webdataset as wds
from loader_peer import BATCH, Collate, count_pixels, run, simplejpeg, timed
from torch.utils.data import DataLoader

SHUFFLE = 1000


def _tars(folder: str) -> list[str]:
    return [str(path) for path in sorted(Path(folder).glob("*.tar"))]


def raw(folder: str, buffer: int, _how: str) -> None:
    """All members as bytes, in one process; `buffer` samples are shuffled, none with 0."""
    dataset = wds.WebDataset(_tars(folder), shardshuffle=False)
    dataset = dataset.shuffle(buffer) if buffer else dataset

    def epoch() -> tuple[int, int]:
        samples = size = 0
        for sample in dataset:
            size += len(sample["jpg"]) + len(sample["txt"]) + len(sample["json"])
            samples += 1
        return samples, size

    timed(epoch, wds.__version__)


def _same(key: str, data: bytes) -> object:
    return simplejpeg(data) if key.endswith(".jpg") else None


def decoded(folder: str, workers: int, how: str) -> None:
    """Pixels and captions, by torch's DataLoader."""
    decoder = "rgb8" if how.startswith("own") else _same
    dataset = wds.WebDataset(_tars(folder), shardshuffle=len(_tars(folder))).shuffle(SHUFFLE).decode(decoder)
    dataset = dataset.to_tuple("jpg", "txt").batched(BATCH, collation_fn=Collate(how), partial=True)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0, prefetch_factor=4 if workers else None
    )
    timed(lambda: count_pixels(loader), wds.__version__)


def first(folder: str, _workers: int, _how: str) -> None:
    """The first batch of raw samples, shuffled as its users do."""
    started = time.perf_counter()
    tars = _tars(folder)
    dataset = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(SHUFFLE).batched(BATCH, collation_fn=None)
    batch = next(iter(dataset))
    seconds = time.perf_counter() - started
    print(f'{{"seconds": {seconds}, "samples": {len(batch)}, "version": "{wds.__version__}"}}')


if __name__ == "__main__":
    run(lambda _tars, _folder: None, {"raw": raw, "decoded": decoded, "first": first})
