"""Group near-duplicates into families and split the families once: training, validation, rest.

Two pictures are of one family if they have the same bytes, look the same (perceptual hash, checked on the pixels), or
belong to one numbered or recoloured series of a folder. A family lies in one split as a whole, so nothing that CLIP
was trained on comes back in the demo set or in an evaluation under another name.

    python -m recipes.tiny_clip.families --openclipart FOLDER/usr/share/openclipart
"""

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
import polars as pl
from numpy.typing import NDArray

from recipes.tiny_clip.openclipart import Clip, load_rgb, read_table, rows, stem_words

SEED = "mmdata-1"
"""Part of every hash below. Another seed is another split, and makes the shipped checkpoint dishonest."""

TRAIN_SHARE, VALIDATION_SHARE = 0.4, 0.1

MAX_HASH_BITS = 6
"""Of 64. Alone this joins round icons with other round icons, hence the check on the pixels."""

MIN_CORRELATION = 0.95
"""Of two 32 x 32 grey thumbnails. Recolours and re-renderings stay above, other motifs fall below."""

MAX_LOG_ASPECT = 0.1
"""Two shapes within a tenth are one shape; the hash squeezes both into a square and would not know."""

MIN_CONTRAST = 6.0
"""Standard deviation of grey levels. Below it a picture is a flat patch, and all flat patches hash alike."""

COLOURS = frozenset(
    re.findall(
        r"\w+",
        "aqua azure beige black blue bronze brown cyan dark gold golden gray green grey lime magenta maroon navy "
        "orange pink purple red seagreen silver violet white yellow light bw colour color coloured "
        "colored b w and outline",
    )
)


class Look(NamedTuple):
    """What the visual comparison needs of one picture."""

    phash: int
    grey_P: NDArray[np.float32]  # 32 * 32 pixels, mean 0, norm 1
    log_aspect: float
    contrast: float


class Forest:
    """Disjoint sets over 0..n-1 (union-find with path halving)."""

    def __init__(self, num_nodes: int) -> None:
        """Start with every node alone."""
        self._parent = list(range(num_nodes))

    def root(self, node: int) -> int:
        """Return the smallest member of the node's set."""
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def join(self, one: int, other: int) -> None:
        """Merge the sets of two nodes."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low


def build_families(root: Path, num_workers: int) -> tuple[pl.DataFrame, Counter[str]]:
    """Return (path, family, split) sorted by path, and counts worth printing."""
    table, skipped = read_table(root)
    clips = rows(table)
    with ProcessPoolExecutor(num_workers) as pool:
        looks = list(pool.map(partial(look_at, root), [clip["path"] for clip in clips], chunksize=32))
    counts = Counter({reason: len(paths) for reason, paths in skipped.paths.items()})
    counts["undecodable"] = looks.count(None)
    kept = [(clip, look) for clip, look in zip(clips, looks, strict=True) if look is not None]
    clips = [clip for clip, _ in kept]
    forest = Forest(len(clips))
    for kind, pairs in (
        ("same bytes or series", same_keys(clips)),
        ("same look", same_look([look for _, look in kept])),
    ):
        for one, other in pairs:
            counts[kind] += forest.root(one) != forest.root(other)
            forest.join(one, other)
    # A family is named by its first path, so adding pictures later does not rename the others.
    names = [clips[forest.root(index)]["path"] for index in range(len(clips))]
    records = [(clip["path"], name, split_of(name)) for clip, name in zip(clips, names, strict=True)]
    return pl.DataFrame(records, schema=["path", "family", "split"], orient="row"), counts


def split_of(family: str) -> str:
    """Return the split of a family: a pure function of its name and `SEED`."""
    draw = int.from_bytes(hashlib.sha256(f"{SEED}:{family}".encode()).digest()[:8]) / 2**64
    if draw < TRAIN_SHARE:
        return "train"
    return "val" if draw < TRAIN_SHARE + VALIDATION_SHARE else "rest"


def look_at(root: Path, name: str) -> Look | None:
    """Decode one picture; None if it cannot be decoded."""
    try:
        picture = load_rgb(root / "png" / name, max_side=256)
    except (OSError, SyntaxError, ValueError):
        return None
    bits = imagehash.phash(picture).hash.flatten()
    grey_P = np.asarray(picture.convert("L").resize((32, 32)), dtype=np.float32).ravel()
    contrast = float(grey_P.std())
    grey_P = (grey_P - grey_P.mean()) / max(float(np.linalg.norm(grey_P - grey_P.mean())), 1e-6)
    phash = int("".join("1" if bit else "0" for bit in bits), 2)
    return Look(phash, grey_P, float(np.log(picture.width / picture.height)), contrast)


def same_keys(clips: Sequence[Clip]) -> Iterator[tuple[int, int]]:
    """Pair each picture with the first that shares its bytes, or its series in the same folder."""
    first: dict[tuple[str, ...], int] = {}
    for index, clip in enumerate(clips):
        folder = str(Path(clip["path"]).parent)
        stem = stem_words(clip["path"], clip["author"])
        keys = [
            ("bytes", clip["sha256"]),
            *(("series", folder, words) for words in {series(stem), series(clip["subject"])}),
        ]
        for key in keys:
            yield first.setdefault(key, index), index


def series(words: str) -> str:
    """Drop counters and colours from a name: "arrow02 1" and "arrow red" are both "arrow"."""
    kept = [word for word in re.findall(r"[^\W\d_]+", words.lower()) if word not in COLOURS]
    return " ".join(kept) or words.lower()


def same_look(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Pair pictures with near perceptual hashes, near shapes and correlated thumbnails."""
    hashes_N = np.array([look.phash for look in looks], dtype=np.uint64)
    grey_NP = np.stack([look.grey_P for look in looks])
    shapes_N = np.array([look.log_aspect for look in looks])
    solid_N = np.array([look.contrast >= MIN_CONTRAST for look in looks])
    for index in range(1, len(looks)):
        if not solid_N[index]:
            continue
        near_N = np.bitwise_count(hashes_N[:index] ^ hashes_N[index]) <= MAX_HASH_BITS
        near_N &= solid_N[:index] & (np.abs(shapes_N[:index] - shapes_N[index]) < MAX_LOG_ASPECT)
        for other in np.flatnonzero(near_N):
            if grey_NP[other] @ grey_NP[index] >= MIN_CORRELATION:
                yield int(other), index


def check_nothing_crosses(table: pl.DataFrame) -> None:
    """Raise if a family lies in two splits."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for family, split in zip(table["family"], table["split"], strict=True):
        splits[family].add(split)
    if crossing := sorted(family for family, found in splits.items() if len(found) > 1):
        raise ValueError(f"{len(crossing)} families lie in two splits, the first is {crossing[0]}")


def summary(table: pl.DataFrame, counts: Counter[str]) -> Iterable[str]:
    """Describe the split in a few lines."""
    yield from (f"{name}: {count}" for name, count in sorted(counts.items()))
    yield f"pictures: {table.height}, families: {table['family'].n_unique()}"
    for (split,), part in table.group_by("split", maintain_order=True):
        yield f"{split}: {part.height} pictures, {part['family'].n_unique()} families"
    for family, size in Counter(table["family"].to_list()).most_common(8):
        yield f"large family: {family}, {size}"


def main() -> None:
    """Write the list and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openclipart", type=Path, required=True, help="folder with png/ and svg/")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("families.tsv"))
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    table, counts = build_families(flags.openclipart, flags.workers)
    check_nothing_crosses(table)
    table.sort("path").write_csv(flags.out, separator="\t")
    print("\n".join(summary(table, counts)))


if __name__ == "__main__":
    main()
