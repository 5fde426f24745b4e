"""The shipped checkpoint and demo set keep their promises: sizes, licences, and nothing crosses the splits."""

import csv
import json
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = ROOT / "recipes" / "tiny_clip" / "families.tsv"
DEMO = ROOT / "mmdata" / "demo" / "data"
MODEL = ROOT / "mmdata" / "models" / "tiny_clip"
MAX_BYTES = 15_000_000


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table whose first line names the columns."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def total_bytes(folder: Path) -> int:
    """Return the size of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_no_family_lies_in_two_splits() -> None:
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for row in read_tsv(FAMILIES):
        splits[row["family"]].add(row["split"])
    assert {family for family, found in splits.items() if len(found) > 1} == set()


def test_families_are_split_four_to_one_to_five() -> None:
    split_of = {row["family"]: row["split"] for row in read_tsv(FAMILIES)}
    shares = {name: list(split_of.values()).count(name) / len(split_of) for name in ("train", "val", "rest")}
    assert abs(shares["train"] - 0.4) < 0.02
    assert abs(shares["val"] - 0.1) < 0.02
    assert abs(shares["rest"] - 0.5) < 0.02


def test_demo_pictures_are_of_the_rest_and_one_a_family() -> None:
    known = {row["path"]: row for row in read_tsv(FAMILIES)}
    sources = [row["path in openclipart-png"] for row in read_tsv(DEMO / "SOURCES.tsv")]
    clips = [known[source] for source in sources if source in known]
    assert len(clips) == len(sources) - 1  # all but the photo
    assert {clip["split"] for clip in clips} == {"rest"}
    assert len({clip["family"] for clip in clips}) == len(clips)


def test_every_demo_file_has_a_row_and_a_source() -> None:
    rows = [json.loads(line) for line in (DEMO / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    files = {path.relative_to(DEMO).as_posix() for path in (DEMO / "images").rglob("*") if path.is_file()}
    assert files == {row["path"] for row in rows if row["kind"] != "not_found"}
    sourced = {row["file"] for row in read_tsv(DEMO / "SOURCES.tsv")}
    ours = {"images/huge.png"}
    assert {path for path in files if not path.startswith("images/mirror/")} == sourced | ours


def test_copies_lie_on_another_host_than_their_original() -> None:
    rows = [json.loads(line) for line in (DEMO / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    host_of = {row["path"]: row["host"] for row in rows}
    assert all(row["host"] != host_of[row["group"]] for row in rows if "group" in row)


def test_shipped_data_is_small() -> None:
    assert total_bytes(MODEL) <= MAX_BYTES
    assert total_bytes(DEMO) <= MAX_BYTES
    assert FAMILIES.stat().st_size <= 1_000_000
