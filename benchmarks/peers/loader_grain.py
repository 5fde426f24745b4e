"""The peer of `benchmarks/loader.py`: Grain on ArrayRecord files, by threads or by worker processes."""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import pickle
from importlib.metadata import version
from pathlib import Path

import grain.python as grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from loader_peer import BATCH, members, pillow, run, simplejpeg, timed

FILES = 10


def prepare(tars: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    writers = [ArrayRecordWriter(f"{folder}/{number:02d}.array_record", "group_size:1") for number in range(FILES)]
    for number, sample in enumerate(members(tars)):
        writers[number % FILES].write(pickle.dumps(sample))
    for writer in writers:
        writer.close()


class Parse:
    """Bytes of a record to pixels and caption."""

    def __init__(self, how: str) -> None:
        self.decoder = simplejpeg if how.startswith("same") else pillow

    def __call__(self, record: bytes) -> tuple[np.ndarray, str]:
        sample = pickle.loads(record)
        return self.decoder(sample["jpg"]), sample["txt"].decode()


def decoded(folder: str, workers: int, how: str) -> None:
    """`list`: threads; `flat`: worker processes, which hand arrays over in shared memory."""
    source = grain.ArrayRecordDataSource([str(path) for path in sorted(Path(folder).glob("*.array_record"))])
    dataset = grain.MapDataset.source(source).shuffle(seed=0).map(Parse(how))
    processes = how.endswith("flat")
    options = grain.ReadOptions(num_threads=max(1, workers), prefetch_buffer_size=128)
    if processes:
        dataset = dataset.batch(BATCH, batch_fn=list)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)

    def epoch() -> tuple[int, int]:
        samples = size = 0
        stream = dataset.to_iter_dataset(options)
        if processes and workers:
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        for item in stream:
            batch = item if processes else [item]
            samples += len(batch)
            size += sum(pixels.nbytes for pixels, _ in batch)
        return samples, size

    timed(epoch, version("grain"))


if __name__ == "__main__":
    run(prepare, {"decoded": decoded})
