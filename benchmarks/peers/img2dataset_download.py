"""The peer of `benchmarks/download.py`: img2dataset on the same list, its options from a JSON file.

python benchmarks/peers/img2dataset_download.py OPTIONS.json
"""

import json
import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

# One of its packages asks a registry for a newer version at every start; without a network that is a wait, not work.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from img2dataset import download


def _resolve_names(rule: str) -> None:
    suffix, _, place = rule.partition("=")
    address, _, port = place.rpartition(":")
    system = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **options: Any) -> list[Any]:  # noqa: ANN401 - as the system's own
        named = isinstance(host, str) and host.endswith(suffix)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port)))] if named else system(host, *rest, **options)

    socket.getaddrinfo = resolve


if "BENCH_HOSTS" in os.environ:
    _resolve_names(os.environ["BENCH_HOSTS"])


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    download(**options)
    stats = [json.loads(path.read_text()) for path in Path(options["output_folder"]).glob("*_stats.json")]
    good = sum(one["successes"] for one in stats)
    sys.stdout.write("\n" + json.dumps({"good": good, "version": version("img2dataset")}) + "\n")


if __name__ == "__main__":
    main()
