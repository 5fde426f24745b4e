"""The peer of `benchmarks/download.py`: img2dataset on the same list, its options from a JSON file.

python benchmarks/peers/img2dataset_download.py OPTIONS.json
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from img2dataset import download


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    download(**options)
    stats = [json.loads(path.read_text()) for path in Path(options["output_folder"]).glob("*_stats.json")]
    good = sum(one["successes"] for one in stats)
    sys.stdout.write("\n" + json.dumps({"good": good, "version": version("img2dataset")}) + "\n")


if __name__ == "__main__":
    main()
