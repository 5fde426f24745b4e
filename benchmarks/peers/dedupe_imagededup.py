"""The peer of `benchmarks/dedupe.py` at the size it can do: imagededup's own search over 64-bit hashes.

    python dedupe_imagededup.py HASHES.npy RADIUS METHOD

METHOD is `brute_force_cython`, its default, or `bktree`. The last line printed is JSON.
"""

# mypy: ignore-errors
# What it imports lies in the environment of the peer.

import json
import logging
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

import imagededup
import numpy as np


def distance(one: str, other: str) -> int:
    """Return in how many bits two hashes in hex differ, as the library's own function does it."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def main() -> None:
    logging.disable(logging.CRITICAL)
    # The package of its helpers loads torch and matplotlib for what is not compared here; the helpers themselves do not.
    helpers = sys.modules.setdefault("imagededup.utils", types.ModuleType("imagededup.utils"))
    helpers.__path__ = [str(Path(imagededup.__file__).parent / "utils")]
    from imagededup.handlers.search.retrieval import HashEval

    hashes = {f"{number}.jpg": f"{int(word):016x}" for number, word in enumerate(np.load(sys.argv[1]))}
    started = time.perf_counter()
    found = HashEval(hashes, hashes, distance, verbose=False, threshold=int(sys.argv[2]), search_method=sys.argv[3])
    results = found.retrieve_results()
    seconds = time.perf_counter() - started
    pairs = sum(len(near) for near in results.values()) // 2
    print(json.dumps({"seconds": seconds, "pairs": pairs, "version": version("imagededup")}))


if __name__ == "__main__":
    main()
