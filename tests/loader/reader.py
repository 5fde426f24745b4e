"""A training loop to be killed: it logs each step and then, with it, the state that goes on after it."""

import json
import sys
from pathlib import Path

from tests.loader.streams import mixed


def main() -> None:
    corpora, log = json.loads(sys.argv[1]), Path(sys.argv[2])
    with mixed(corpora) as loader:
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        if whole:
            loader.restore(json.loads(whole[-1])["state"])
        with log.open("a", encoding="utf-8") as file:
            if lines and lines[-1] not in whole:
                file.write("\n")
            for batch in loader:
                line = {"step": batch.step, "rows": batch.rows, "state": loader.state_dict()}
                file.write(json.dumps(line) + "\n")
                file.flush()
                print("step", flush=True)  # noqa: T201 - the test waits for it


if __name__ == "__main__":
    main()
