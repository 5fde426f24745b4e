"""How well copies of real pictures are found: exact copies of clip art, edits of photographs, wallpapers in two crops.

    python -m benchmarks.dedupe_quality [--quick] [--json FILE]

What is compared, and how, is said in `NOTES`. Nothing here is timed.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.dedupe_pictures import EDITS, clip_art, opened, photos, sscd, wallpapers
from benchmarks.harness import HERE, stamp
from mmdata.dedupe.hamming import near_hashes
from mmdata.errors import RecordError
from mmdata.media import decode
from mmdata.media.phash import pdq, phash
from mmdata.models import OpenClip
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.fingerprint import Fingerprint
from mmdata.stages.passes import Gather, Scatter
from mmdata.stages.verbs import Batch, WorkerContext
from mmdata.storage import digest_bytes, open_store

RATE = 1e-3  # of pairs of different pictures that may be taken for copies
MOST_PIXELS = 20_000_000  # of clip art that is decoded
NOTES = """\
**Edits.** {photos} photographs (GCompris', and the widest file of each wallpaper), at most 640 pixels long, each with {edits}
edits of a fixed strength. A method has one threshold: the widest at which at most {rate:.1%} of the {pairs:,} pairs of an
edit with *another* photograph are taken for copies. The first table gives the share of the edits that are found by their
original at that threshold; the second what thresholds in common use give. *False* is the share of pairs of different
photographs that are taken for copies.

pHash has 64 bits, PDQ 256; `+ views` also compares the hashes of the picture mirrored and turned by quarters, as `views` of
`fingerprint` does. SSCD is the copy detection model of that name (512 numbers, a cosine). CLIP is the small one that ships
with mmdata (128 numbers): no package carries the weights of a large one. Its place in the table is that of a model made for
meaning, not for copies.

**Wallpapers** are {papers} pairs of crops of one wallpaper (wide and upright), looked for among {files} files of {groups}
wallpapers; a dark version is another picture, and is left out of what counts as false.

**Exact copies.** {exact}
"""

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A way to compare: what it makes of each picture, (N, ...), the distance of two sets, (A, B), and a common threshold."""

    name: str
    signs: np.ndarray
    apart: Distance
    common: float

    def said(self, threshold: float) -> str:
        """Say a distance as people do: bits, or a cosine."""
        return f"{threshold:.0f} bits" if self.signs.dtype == np.uint64 else f"{1 - threshold:.3f}"


@dataclass(frozen=True)
class Line:
    """What a method finds at one threshold: the share of false pairs, of each edit, of the pairs of wallpapers."""

    method: str
    threshold: str
    false: float
    recall: dict[str, float]
    papers: float
    papers_false: float


def differing(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the fewest bits in which any view of (A, V, W) differs from any of (B, V, W) hashes, (A, B)."""
    least = np.full((len(left), len(right)), 1 << 10)
    for one in range(left.shape[1]):
        for other in range(right.shape[1]):
            bits = np.bitwise_count(left[:, None, one] ^ right[None, :, other]).sum(axis=2, dtype=np.int64)
            least = np.minimum(least, bits)
    return least.astype(np.float64)


def turned_away(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return one minus the cosine of (A, D) and (B, D) vectors of length 1."""
    found: np.ndarray = 1 - left.astype(np.float64) @ right.astype(np.float64).T
    return found


def views(pixels: np.ndarray) -> list[np.ndarray]:
    """Return a picture as it is, mirrored, and turned by quarters."""
    return [np.ascontiguousarray(view) for view in (pixels, pixels[:, ::-1], *(np.rot90(pixels, turn) for turn in (1, 2, 3)))]


def methods(pictures: list[Image.Image], home: Path) -> list[Method]:
    """Return what each method makes of the pictures."""
    seen = [views(np.asarray(picture)) for picture in pictures]
    short = np.array([[[phash(view)] for view in some] for some in seen], np.uint64)
    long = np.array(
        [[[int(pdq(view)[at : at + 16], 16) for at in range(0, 64, 16)] for view in some] for some in seen], np.uint64
    )
    with OpenClip(batch=32).open("cpu", 2) as towers:
        clip, _ = towers.embed([towers.prepare(np.asarray(picture)) for picture in pictures], [])
    return [
        Method("pHash", short[:, :1], differing, 4), Method("pHash + views", short, differing, 4),
        Method("PDQ", long[:, :1], differing, 31), Method("PDQ + views", long, differing, 31),
        Method("SSCD", sscd(pictures, home / "sscd.npy"), turned_away, 0.25), Method("CLIP", clip, turned_away, 0.05),
    ]  # fmt: skip


def matched(false: np.ndarray, rate: float) -> float:
    """Return the widest threshold at which at most this share of false pairs is within it."""
    most = int(rate * len(false))
    ordered = np.sort(false)
    if most >= len(ordered):
        return float(ordered[-1])
    below = ordered[ordered < ordered[most]]  # of several equal distances all are within, or none
    return float(below[-1]) if len(below) else -1.0


@dataclass(frozen=True)
class Pictures:
    """All pictures: originals, their edits edit by edit, and files of wallpapers with their group and name."""

    num: int
    papers: list[str]
    all: list[Image.Image]


def pictures(most: int | None) -> Pictures:
    """Read photographs and wallpapers, and edit them."""
    groups = wallpapers()
    bright = [max(paths, key=lambda path: path.stat().st_size) for name, paths in groups.items() if name.endswith("/images")]
    originals = [*photos(), *(opened(path) for path in bright)][:most]
    files = [(name, path) for name, paths in groups.items() for path in paths][:most]
    edits = [edit(picture) for edit in EDITS.values() for picture in originals]
    return Pictures(len(originals), [name for name, _ in files], [*originals, *edits, *(opened(path) for _, path in files)])


def judged(method: Method, given: Pictures) -> list[Line]:
    """Return a method's lines: at the matched threshold and at the common one."""
    num = given.num
    first = num * (1 + len(EDITS))
    apart = method.apart(method.signs[num:first], method.signs[:num]).reshape(len(EDITS), num, num)
    same = np.eye(num, dtype=bool)
    false = apart[:, ~same].ravel()
    papers = method.apart(method.signs[first:], method.signs[first:])
    names = np.array(given.papers)
    bare = np.array([name.partition("/")[0] for name in given.papers])
    upper = np.triu(np.ones_like(papers, bool), 1)
    pairs, others = upper & (names[:, None] == names), upper & (bare[:, None] != bare)
    lines = []
    for threshold in (matched(false, RATE), method.common):
        recall = {name: float((apart[place][same] <= threshold).mean()) for place, name in enumerate(EDITS)}
        found = (float((papers[mask] <= threshold).mean()) if mask.any() else 0.0 for mask in (pairs, others))
        lines.append(Line(method.name, method.said(threshold), float((false <= threshold).mean()), recall, *found))
    return lines


def copies(paths: list[Path]) -> str:
    """Dedupe clip art by bytes and by pixels; say what was found against a comparison of the bytes and pixels themselves."""
    datas = [path.read_bytes() for path in paths]
    truth = [hashlib.blake2b(data).digest() for data in datas]
    groups = {value for value, num in Counter(truth).items() if num > 1}
    wrong, gone = by_stage("raw_sha256", [digest_bytes(data) for data in datas], truth)
    if wrong or gone != len(truth) - len(set(truth)):
        raise ValueError(f"{gone} were dropped by their bytes, {wrong} of them are no copies, {len(truth) - len(set(truth))} are")
    first = sorted({value: place for place, value in reversed(list(enumerate(truth)))}.values())
    kept, pixels, hashes = decoded([datas[place] for place in first])
    wrong, more = by_stage("pixels", pixels, [repr(pixels[place]) for place in range(len(pixels))])
    look = [place for value, num in Counter(pixels).items() if num > 1 for place in range(len(pixels)) if pixels[place] == value]
    arrays: dict[str, np.ndarray] = {}
    for place in look:
        here = decode(datas[first[kept[place]]])
        wrong += not np.array_equal(arrays.setdefault(pixels[place], here), here)
    if wrong:
        raise ValueError(f"{wrong} pictures of equal `pixels` differ")
    said = [
        f"Of {len(paths):,} files of openclipart {gone:,} are copies, byte for byte, in {len(groups)} groups. "
        f"`dedupe` by `raw_sha256` drops those {gone:,} and no other: each by a keeper of its own group. {len(kept):,} of the "
        f"{len(first):,} different files have at most {MOST_PIXELS // 10**6} million pixels and were decoded; by `pixels` "
        f"{more:,} more are copies, each compared pixel by pixel with its keeper."
    ]
    for radius in (0, 4):
        found = near_hashes(np.array(hashes, np.uint64), radius)
        unlike = sum(pixels[one] != pixels[other] for one, other in zip(found.left_P, found.right_P, strict=True))
        said.append(f"pHash within {radius} bits: {len(found):,} pairs, {unlike:,} of them of different pixels.")
    said.append(
        "Most of these are series of one symmetric drawing, such as stars with ever more points, which 64 low frequencies do not "
        "tell apart: drawings need `pixels` or a longer hash."
    )
    return " ".join(said)


def by_stage(column: str, values: list[str], truth: list[bytes] | list[str]) -> tuple[int, int]:
    """Run the passes of `dedupe`; return how many it dropped wrongly, and how many in all."""
    scatter, gather = Dedupe(by=column).passes()
    assert isinstance(scatter, Scatter)
    assert isinstance(gather, Gather)
    num = len(values)
    table = pa.table({
        "_partition": np.zeros(num, np.int64), "_row": np.arange(num), "sample_id": [f"{place:032x}" for place in range(num)],
        "position": np.zeros(num, np.int32), column: values,
    })  # fmt: skip
    verdicts = gather.work(scatter.prepare(table))
    keepers = [int(keeper, 16) for keeper in verdicts.column("keeper_id").to_pylist()]
    wrong = sum(truth[row] != truth[keeper] for row, keeper in zip(verdicts.column("_row").to_pylist(), keepers, strict=True))
    return wrong, verdicts.num_rows


def decoded(datas: list[bytes]) -> tuple[list[int], list[str], list[int]]:
    """Return which pictures could be decoded, their `pixels`, and their pHash, by the stage."""
    work = Fingerprint(kinds=("pixels", "phash")).open(WorkerContext(open_store(".")))
    kept, pixels, hashes = [], [], []
    for place, data in enumerate(datas):
        width, height = np.frombuffer(data[16:24], ">u4").tolist()  # of a PNG
        if width * height > MOST_PIXELS:
            continue
        try:
            image = decode(data)
        except RecordError:
            continue
        row = work(Batch(pa.table({"_row": [0]}), [image]))
        kept.append(place)
        pixels.append(row.column("pixels")[0].as_py())
        hashes.append(row.column("phash")[0].as_py())
    return kept, pixels, hashes


def page(lines: list[tuple[Line, Line]], notes: str) -> str:
    """Return the result page."""
    tables = []
    for title, place in ((f"At one rate of false pairs, {RATE:.1%}", 0), ("At common thresholds", 1)):
        names = list(EDITS)
        head = (
            "| method | threshold | "
            + " | ".join(names)
            + " | all edits | false | wallpapers | false |\n"
            + "|---" * (len(names) + 6)
            + "|"
        )
        rows = []
        for both in lines:
            line = both[place]
            shares = [line.recall[name] for name in names]
            cells = [*(f"{share:.0%}" for share in (*shares, float(np.mean(shares)))), f"{line.false:.3%}", f"{line.papers:.0%}"]
            rows.append(f"| {line.method} | {line.threshold} | " + " | ".join([*cells, f"{line.papers_false:.2%}"]) + " |")
        tables += [f"## {title}", "", head, *rows, ""]
    return "\n".join(["# dedupe_quality", "", stamp("dedupe_quality"), "", *tables, notes.strip(), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few pictures; never committed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    most = 12 if options.quick else None
    with tempfile.TemporaryDirectory(prefix="mmdata-quality-") as folder:
        given = pictures(most)
        lines = [(line[0], line[1]) for method in methods(given.all, Path(folder)) if (line := judged(method, given))]
    counts = Counter(given.papers)
    notes = NOTES.format(
        photos=given.num, edits=len(EDITS), rate=RATE, pairs=len(EDITS) * given.num * (given.num - 1), files=len(given.papers),
        papers=sum(num * (num - 1) // 2 for num in counts.values()), groups=len(counts),
        exact=copies(clip_art(links=True)[:most]),
    )  # fmt: skip
    sys.stdout.write(page(lines, notes))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(line) for both in lines for line in both], indent=1) + "\n", encoding="utf-8")
    if not options.quick:
        (HERE / "results/dedupe_quality.md").write_text(page(lines, notes), encoding="utf-8")


if __name__ == "__main__":
    main()
