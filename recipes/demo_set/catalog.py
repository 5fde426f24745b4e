"""Turn the demo set's `rows.jsonl` and `document.json` into the list files that a catalog names.

    python -m recipes.demo_set.catalog mmdata/demo/data

Every eighth clean row with keywords gets its bare title as a further caption, so that there is something to split.
"""

import json
import sys
from pathlib import Path

SITE = "http://host-{host:02d}.demo.localhost/{path}"
NUM_HOSTS = 64


def main(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    blocks = json.loads((data / "document.json").read_text(encoding="utf-8"))["blocks"]
    told = {block.get("path") for block in blocks}  # the document's own pictures are no pairs besides
    _write(data / "pairs.jsonl", [_pair(index, row) for index, row in enumerate(rows) if row["path"] not in told])
    texts = [block["text"] if block["type"] == "text" else None for block in blocks]
    images = [None if block["type"] == "text" else _url(7 * place, block["path"], "") for place, block in enumerate(blocks)]
    _write(data / "documents.jsonl", [{"images": images, "texts": texts}])


def _pair(index: int, row: dict[str, object]) -> dict[str, object]:
    text = row["text"]
    also = None
    if row["kind"] == "clean" and index % 8 == 0 and isinstance(text, str) and "," in text:
        also = text.split(",")[0]
    return {"url": _url(int(str(row["host"])), str(row["path"]), str(row["kind"])), "text": text, "also": also}


def _url(host: int, path: str, kind: str) -> str:
    return SITE.format(host=host % NUM_HOSTS, path=f"slow/{path}" if kind == "slow" else path)


def _write(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
