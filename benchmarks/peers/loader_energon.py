"""The peer of `benchmarks/loader.py`: Megatron-Energon, on hard links of the corpus's own tars that it indexed."""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import yaml
from loader_peer import BATCH, Collate, FlatOrList, count_pixels, run, simplejpeg, timed
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    SampleDecoder,
    WorkerConfig,
    __version__,
    get_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

CRUDE = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}


def prepare(tars: str, folder: str) -> None:
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in Path(tars).glob("*.tar"))
    for name in names:
        os.link(Path(tars) / name, home / name)
    WebdatasetPreparator.prepare_dataset(home, names, split_parts_ratio=[("train", 1.0)], workers=2)
    (home / ".nv-meta/dataset.yaml").write_text(yaml.safe_dump(CRUDE), encoding="utf-8")


@stateless
def as_is(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


@stateless
def with_simplejpeg(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "jpg": simplejpeg(sample["jpg"]), "txt": sample["txt"].decode()}


class Own(DefaultTaskEncoder):
    """Energon's own decoder, as arrays."""

    decoder = SampleDecoder(image_decode="rgb8")
    cookers: ClassVar = [Cooker(as_is)]
    collate = Collate("list")

    def batch(self, samples: list[dict[str, Any]]) -> FlatOrList:
        return self.collate([(sample["jpg"], sample["txt"]) for sample in samples])


class Same(Own):
    """Our decoder in its place."""

    decoder = None
    cookers: ClassVar = [Cooker(with_simplejpeg)]


def decoded(folder: str, workers: int, how: str) -> None:
    encoder = Same() if how.startswith("same") else Own()
    encoder.collate = Collate(how)
    num = sum(json.loads((Path(folder) / ".nv-meta/.info.json").read_text(encoding="utf-8"))["shard_counts"].values())
    dataset = get_train_dataset(
        folder, worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers), batch_size=BATCH, shuffle_buffer_size=1000,
        max_samples_per_sequence=100, virtual_epoch_length=-(-num // BATCH), task_encoder=encoder,
    )  # fmt: skip
    loader = get_loader(dataset, prefetch_factor=4)
    timed(lambda: count_pixels(loader), __version__)


if __name__ == "__main__":
    run(prepare, {"decoded": decoded})
