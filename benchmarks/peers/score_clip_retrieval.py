"""The peer of `benchmarks/score.py`: clip-retrieval's inference, by its own reader, mapper, writer and runner.

    python score_clip_retrieval.py OPTIONS.json

Decided here: the model is loaded by open_clip itself, since clip-retrieval only takes names of published ones; its own
classes see no difference. Its logger is left out: it is a process of its own, whose start would cost more than a short run.
What is counted is its runner, from making the data loader to the last file written.
"""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import json
import resource
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import packaging
import torch


class Silent:
    """A logger that keeps nothing."""

    def start(self) -> None:
        pass

    def __call__(self, stats: dict[str, float]) -> None:
        pass

    def end(self) -> None:
        pass


def cpu() -> float:
    """Return the CPU seconds of this process and of the loader processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def described(folder: Path, home: Path) -> tuple[str, str, dict[str, object]]:
    """Return a model in open_clip's layout as a version that reads no folders wants it: an architecture, a file, a transform."""
    facts = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    (home / "described.json").write_text(json.dumps(facts["model_cfg"]), encoding="utf-8")
    open_clip.add_model_config(home / "described.json")
    wanted = {f"image_{key}": facts["preprocess_cfg"][key] for key in ("mean", "std", "interpolation", "resize_mode")}
    return "described", str(next(folder.glob("*.safetensors"))), wanted


def main() -> None:
    # What it installs still asks a part of setuptools that is gone for `packaging`.
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources")).packaging = packaging
    from clip_retrieval.clip_inference import mapper as mapping
    from clip_retrieval.clip_inference.reader import WebdatasetReader
    from clip_retrieval.clip_inference.runner import Runner
    from clip_retrieval.clip_inference.writer import NumpyWriter

    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    name, weights, given, out = options["model"], options["weights"], {}, options["out"]
    if not weights:
        name, weights, given = described(Path(name), Path(out).parent)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights, device=device, **given)
    loaded = model.eval(), preprocess, open_clip.get_tokenizer(name)
    mapping.load_clip = lambda *_args, **_named: loaded
    Path(out).mkdir(parents=True)
    what = {"enable_image": True, "enable_text": True, "enable_metadata": False}
    mapper = mapping.ClipMapper(
        **what, use_mclip=False, clip_model=name, use_jit=False, mclip_model="", warmup_batch_size=options["batch"]
    )
    runner = Runner(
        reader_builder=lambda sampler: WebdatasetReader(
            sampler, preprocess, loaded[2], options["tars"], options["batch"], options["workers"], **what
        ),
        mapper_builder=lambda: mapper,
        writer_builder=lambda number: NumpyWriter(number, out, **what, output_partition_count=1),
        logger_builder=lambda _number: Silent(),
        output_partition_count=1,
    )
    started, used = time.perf_counter(), cpu()
    runner(0)
    seconds, used = time.perf_counter() - started, cpu() - used
    images = sum(len(np.load(path)) for path in Path(out).glob("img_emb/*.npy"))
    facts = {"version": version("clip-retrieval"), "torch": torch.__version__}
    print(json.dumps({"seconds": seconds / images, "cpu": used / images, "images": images, **facts}))


if __name__ == "__main__":
    main()
