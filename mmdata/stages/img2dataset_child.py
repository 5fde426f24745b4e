"""The child process of `download_img2dataset`: img2dataset's downloader, resizer and writer over one shard.

It is run as a script with nothing of ours imported. Its order comes as JSON on stdin. What img2dataset would load only for
its log and its other ways to spread work (torch, ray, Weights & Biases) is left out, and it ends when its parent does.
"""

import ctypes
import inspect
import json
import os
import signal
import sys
import types
from typing import Any

_PR_SET_PDEATHSIG = 1
_UNUSED = ("ray", "torch")


def main() -> None:
    """Download one shard as the order on stdin says."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[1]):
            return
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for its newest release
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # to `import` it is then not installed
    sys.modules["wandb"] = types.ModuleType("wandb")
    _download(json.load(sys.stdin))


def _download(order: dict[str, Any]) -> None:
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    known = inspect.signature(Resizer).parameters
    resizer = Resizer(**{name: value for name, value in order["resize"].items() if name in known})
    Downloader(
        sample_writer_class=WebDatasetSampleWriter, resizer=resizer, save_caption=False, extract_exif=True, oom_shard_count=5,
        compute_hash="sha256", verify_hash_type=None, column_list=["url"], disallowed_header_directives=order["directives"],
        encode_format=order["resize"]["encode_format"], **order["fetch"],
    ).download_shard((0, order["shard"]))  # fmt: skip


if __name__ == "__main__":
    main()
