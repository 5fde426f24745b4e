"""A pool of DataComp's metadata with every quirk of the filters planted in it, and the assets that go with it.

`write_pool` writes rows of two kinds. Planted rows are one quirk each, over a row that every filter keeps; their uids are
kept by the quirk's name, so that a disagreement can be called by it. The others are random, with scores and sides on few
values, so that ties are common.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.datacomp.oracle import Assets
from tests.datacomp.wordnet import write_ids, write_wordnet

L14, B32 = 768, 512
FILES = (("float16", True), ("float32", True), ("float16", False))  # of the npz: its numbers, and whether it has `dedup`
COPIES = 3  # of each planted row

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("clip_b32_similarity_score", pa.float32()),
        ("clip_l14_similarity_score", pa.float32()),
        ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
        ("sha256", pa.string()),
    ]
)

# Clusters 0 to 7 lie on four axes of their own each; the even ones are ImageNet's. The others are there for one quirk each.
BASIC = 8
SHORT, LONG = 8, 9  # one direction twice, nearly: by distance SHORT is nearer to its features, by inner product LONG is
COARSE, FINE = 10, 11  # equal in float16, FINE is larger in float32
TARGETS = frozenset({0, 2, 4, 6, SHORT, FINE})


def centroids() -> np.ndarray:
    """Return the clusters, (12, 768) float32, whose inner products are exact in any order of adding."""
    made = np.zeros((12, L14), np.float32)
    for cluster in range(BASIC):
        made[cluster, 4 * cluster : 4 * cluster + 4] = 0.5
    made[SHORT, 40:44] = 0.25
    made[LONG, [40, 41, 42, 44]] = 0.5
    made[COARSE, 50:54] = 0.5
    made[FINE, 50:54] = 0.5 + 2**-13
    return made


def between(*axes: int) -> np.ndarray:
    """Return a feature of unit length, (768,), that is 0.5 on four axes."""
    feature = np.zeros(L14, np.float32)
    feature[list(axes)] = 0.5
    return feature


def at_cluster(cluster: int) -> np.ndarray:
    """Return the feature in the middle of a cluster of the basic ones."""
    return between(*range(4 * cluster, 4 * cluster + 4))


def ulp(score: float, steps: int) -> float:
    """Return the float32 that lies so many steps above a score, or below it."""
    found = np.float32(score)
    for _ in range(abs(steps)):
        found = np.nextafter(found, np.float32(np.inf if steps > 0 else -np.inf))
    return float(found)


GOOD: dict[str, Any] = {
    "text": "A photograph of the brown dog in the garden",
    "original_width": 640,
    "original_height": 480,
    "clip_b32_similarity_score": 0.375,
    "clip_l14_similarity_score": 0.375,
    "face_bboxes": [],
    "l14_img": at_cluster(0),
}

# Each name is what is odd about the row; what it has is what differs from GOOD. The oracle's tests say who keeps which.
PLANTED: dict[str, dict[str, Any]] = {
    "nothing odd": {},
    "faces": {"face_bboxes": [[0.1, 0.2, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]]},
    # texts
    "null text": {"text": None},
    "empty text": {"text": ""},
    "spaces only": {"text": "          "},
    "line end": {"text": "The brown dog is sitting\nin the green garden"},
    "line end, two words of split": {"text": "Beautiful\nphotographs"},
    "line end after one word": {"text": "photography\n"},  # for fastText the line end is a word
    "line ends only": {"text": "\n\n\n\n\n\n"},  # six words to fastText
    "wide spaces": {"text": "the\u2003brown\u2003dog\u2003is\u2003in\u2003the\u2003garden"},  # one word for fastText
    "nul between words": {"text": "photograph\0of\0the\0dog"},  # one word for Python
    "unit separators": {"text": "the\x1fbrown\x1fdog\x1fin\x1fthe\x1fgarden"},
    "carriage returns": {"text": "The brown dog\r\nin the green garden\r\n"},
    "two words": {"text": "brown photographs"},
    "three words": {"text": "the brown dog"},
    "five characters": {"text": "a b c"},
    "six characters": {"text": "I am a"},
    "six code points": {"text": "to do\U0001f600"},
    "five code points, many bytes": {"text": "I am\U0001f600"},
    "German": {"text": "Ein Foto von einem braunen Hund, der im Garten sitzt"},
    "French": {"text": "Une photographie du chien brun dans le jardin de la maison"},
    "Spanish with an English class": {"text": "Una fotografía de un perro muy grande en el jardín, hot_dog"},
    "Japanese": {"text": "庭にいる茶色い犬の写真"},
    "Russian": {"text": "Фотография коричневой собаки в саду"},
    "Arabic": {"text": "صورة كلب بني في الحديقة"},
    "Chinese": {"text": "花园里一只棕色的狗的照片"},
    # words and synsets
    "a class with a comma": {"text": "This is what he said about my dog, and then he left"},
    "a class in capitals": {"text": "This is what he said about my DOG and then he left"},
    "a class in the plural": {"text": "This is what he said about those boxes and then he left"},
    "an irregular plural": {"text": "This is what he said about those mice and then he left"},
    "an irregular plural of no class": {"text": "This is what he said about those men and then he left"},
    "a class as second meaning": {"text": "This is what he said about the bank and then he left"},
    "a class by its synonym": {"text": "This is what he said about that automobile and then he left"},
    "a noun that is a verb too": {"text": "This is what he said about the run and then he left"},
    "a verb at a class's offset": {"text": "This is what he said when they breathe and then he left"},
    "a verb form at a class's offset": {"text": "This is what he said while they were breathing and then he left"},
    "an adjective at a class's offset": {"text": "This is what he said about the blue and then he left"},
    "an adverb at a class's offset": {"text": "This is what he said quickly and then he left"},
    "a word whose stem is a class": {"text": "This is what he said about my glasses and then he left"},
    "two words that are a class": {"text": "This is what he said about the hot_dog and then he left"},
    "no word of the dictionary": {"text": "This is what he said about them and then he left"},
    # sides
    "width 199": {"original_width": 199, "original_height": 400},
    "width 200": {"original_width": 200, "original_height": 400},
    "width 201": {"original_width": 201, "original_height": 400},
    "height 199": {"original_width": 400, "original_height": 199},
    "height 200": {"original_width": 400, "original_height": 200},
    "height 201": {"original_width": 400, "original_height": 201},
    "3 to 1": {"original_width": 600, "original_height": 200},
    "1 to 3": {"original_width": 333, "original_height": 999},
    "a pixel above 3 to 1": {"original_width": 601, "original_height": 200},
    "a pixel above 1 to 3": {"original_width": 333, "original_height": 1000},
    "a hair above 3 to 1": {"original_width": 3 * 10**8 + 1, "original_height": 10**8},  # 3.0 in float32
    "width 0": {"original_width": 0},
    "both sides 0": {"original_width": 0, "original_height": 0},
    "null width": {"original_width": None},
    "null sides": {"original_width": None, "original_height": None},
    # scores
    "b32 at 0.28": {"clip_b32_similarity_score": ulp(0.28, 0)},
    "b32 below 0.28": {"clip_b32_similarity_score": ulp(0.28, -1)},
    "b32 above 0.28": {"clip_b32_similarity_score": ulp(0.28, 1)},
    "b32 at 0.25": {"clip_b32_similarity_score": 0.25},
    "b32 below 0.25": {"clip_b32_similarity_score": ulp(0.25, -1)},
    "l14 at 0.26": {"clip_l14_similarity_score": ulp(0.26, 0)},  # this float32 is below the float64 0.26
    "l14 below 0.26": {"clip_l14_similarity_score": ulp(0.26, -1)},
    "b32 NaN": {"clip_b32_similarity_score": float("nan")},
    "l14 NaN": {"clip_l14_similarity_score": float("nan")},
    "null scores": {"clip_b32_similarity_score": None, "clip_l14_similarity_score": None},
    "negative scores": {"clip_b32_similarity_score": -0.125, "clip_l14_similarity_score": -0.125},
    # clusters
    "no cluster of ImageNet": {"l14_img": at_cluster(1)},
    "between two, the first is ImageNet's": {"l14_img": between(0, 1, 4, 5)},  # clusters 0 and 1
    "between two, the second is ImageNet's": {"l14_img": between(4, 5, 8, 9)},  # clusters 1 and 2
    "nearer by distance only": {"l14_img": between(40, 41, 42, 43)},  # LONG, which is not ImageNet's
    "nearer in float32 only": {"l14_img": between(50, 51, 52, 53)},  # FINE, which is
    "as far from all": {"l14_img": between(60, 61, 62, 63)},  # inner products all 0: cluster 0
}

_SENTENCES = (
    "A photograph of the brown dog in the garden of our house",
    "This is the best car that money can buy in this country",
    "Two men and a mouse run quickly over the bank of the river",
    "Sale: blue glasses, free delivery with every order over ten pounds",
    "Ein Foto von einem braunen Hund, der mit dem Kind im Garten sitzt",
    "Une photographie du chien brun dans le jardin de la maison",
    "Una fotografía de un perro muy grande en el jardín de la casa",
    "Uma fotografia do cachorro marrom no jardim da nossa casa",
    "Een foto van de bruine hond in de tuin van ons huis",
    "Фотография коричневой собаки в саду возле нашего дома",
    "庭にいる 茶色い 犬の 写真 です",
    "صورة كلب بني في حديقة منزلنا الجميل",
    "IMG_2034.JPG dog 1024x768 box #7",
)
_SIDES = (0, 1, 100, 199, 200, 201, 256, 399, 400, 512, 600, 601, 602, 603, 1000)


@dataclass(frozen=True)
class Pool:
    """A pool on disk: its folder, its files as the oracle takes them, and the uids of the planted rows by quirk."""

    folder: Path
    files: tuple[tuple[Path, Path], ...]
    planted: dict[str, list[str]]


class CommonWords:
    """In place of gcld3, which has no wheel for this Python: a text with three of these words is English."""

    words = frozenset({"a", "about", "and", "in", "is", "of", "our", "over", "said", "that", "the", "then", "this", "with"})

    def __call__(self, text: str) -> str:
        assert "\n" not in text, "gcld3 is asked about texts without line ends"
        return "en" if sum(word in self.words for word in text.lower().split()) >= 3 else "und"


def write_assets(folder: Path, fasttext_model: Path) -> Assets:
    """Write the dictionary and the list of classes; ImageNet's features lie around the targets, several at each."""
    features = [*(at_cluster(cluster) for cluster in (0, 2, 4, 6, 2, 0)), between(50, 51, 52, 53)]
    features += [between(40, 41, 43, 43) * 2 - between(42, 44)]  # away from LONG: SHORT
    return Assets(
        fasttext_model=fasttext_model,
        wordnet=write_wordnet(folder / "wordnet"),
        imagenet21k_ids=write_ids(folder / "imagenet21k_wordnet_ids.txt"),
        pool_centroids_CD=centroids(),
        gcld3_language=CommonWords(),
        target_centroids=TARGETS,
        in1k_features_ND=np.stack(features).astype(np.float16),
    )


def write_pool(folder: Path, num_rows: int = 3000, seed: int = 0) -> Pool:
    """Write a pool of `num_rows` rows: three files with rows, and one with none."""
    rng = random.Random(seed)
    planted = [(name, {**GOOD, **odd}) for name, odd in PLANTED.items() for _ in range(COPIES)]
    rows = planted + [("", _random_row(rng)) for _ in range(num_rows - len(planted))]
    rng.shuffle(rows)
    uids = _uids(rng, [bool(name) for name, _ in rows])
    folder.mkdir(parents=True)
    named: dict[str, list[str]] = {name: [] for name in PLANTED}
    for (name, row), uid in zip(rows, uids, strict=True):
        row["uid"] = uid
        if name:
            named[name].append(uid)
    cuts = [0, num_rows // 5, num_rows // 2, num_rows]
    parts = [[row for _, row in rows[start:stop]] for start, stop in pairwise(cuts)]
    files = [_write_file(folder, rng, part, *kind) for part, kind in zip(parts, FILES, strict=True)]
    files.append(_write_file(folder, rng, [], *FILES[0]))
    return Pool(folder, tuple(files), named)


def _random_row(rng: random.Random) -> dict[str, Any]:
    words = rng.choice(_SENTENCES).split()
    text = rng.choice("    \n\t\u2003").join(words[: rng.randrange(len(words) + 1)])
    cluster = rng.randrange(BASIC)
    return {
        "text": None if rng.random() < 0.01 else text,
        "original_width": rng.choice(_SIDES),
        "original_height": rng.choice(_SIDES),
        "clip_b32_similarity_score": _random_score(rng),
        "clip_l14_similarity_score": _random_score(rng),
        "face_bboxes": [[0.25, 0.25, 0.5, 0.5]] * rng.randrange(3),
        "l14_img": _near(rng, cluster),
    }


def _near(rng: random.Random, cluster: int) -> np.ndarray:
    """Return a feature of unit length in a cluster, on the side of another and with some noise."""
    noise = np.random.default_rng(rng.getrandbits(32)).normal(scale=0.01, size=L14)
    feature = at_cluster(cluster) * 0.75 + at_cluster(rng.randrange(BASIC)) * 0.5 + noise
    return feature / np.linalg.norm(feature)


def _random_score(rng: random.Random) -> float:
    return float("nan") if rng.random() < 0.01 else round(rng.gauss(0.24, 0.05), 2)


def _uids(rng: random.Random, planted: Sequence[bool]) -> list[str]:
    """Return uids over all 128 bits: some differ in one half only, and some of rows not planted stand twice or thrice."""
    uids = [f"{rng.getrandbits(128):032x}" for _ in planted]
    for place in range(2, len(uids), 7):
        uids[place] = uids[place - 1][:16] + uids[place][16:]
    for place in range(2, len(uids), 11):
        uids[place] = uids[place][:16] + uids[place - 2][16:]
    uids[0], uids[-1] = "0" * 31 + "1", "f" * 32
    free = [place for place, there in enumerate(planted) if not there]
    for place in free[:: len(free) // 40]:
        uids[place] = uids[rng.choice(free)]
    return uids


def _write_file(folder: Path, rng: random.Random, rows: Sequence[dict[str, Any]], kind: str, dedup: bool) -> tuple[Path, Path]:
    """Write a parquet and the npz of the same rows, under a name of 32 hexadecimal digits."""
    stem = f"{rng.getrandbits(128):032x}"
    noise = np.random.default_rng(len(rows))
    columns = [{**row, "url": f"http://example.org/{row['uid']}.jpg", "sha256": row["uid"] * 2} for row in rows]
    table = pa.Table.from_pylist(columns, SCHEMA)  # what the schema does not name is left out
    pq.write_table(table, folder / f"{stem}.parquet", row_group_size=500)
    arrays = {name: noise.standard_normal((len(rows), width)) for name, width in (("b32_img", B32), ("b32_txt", B32))}
    arrays["l14_txt"] = noise.standard_normal((len(rows), L14))
    arrays = {name: array / np.linalg.norm(array, axis=1, keepdims=True) for name, array in arrays.items()}
    arrays["l14_img"] = np.array([row["l14_img"] for row in rows]).reshape(-1, L14)
    if dedup:
        arrays["dedup"] = noise.standard_normal((len(rows), 1))
    stored: dict[str, Any] = {name: array.astype(kind) for name, array in arrays.items()}
    np.savez(folder / f"{stem}.npz", **stored)
    return folder / f"{stem}.parquet", folder / f"{stem}.npz"
