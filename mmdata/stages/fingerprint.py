"""Hashes of a picture's look and of its pixels, for `dedupe`."""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from mmdata.schema import IMAGE
from mmdata.stages.verbs import Batch, Map, MapFn, WorkerContext

Kind = Literal["phash", "pdq", "pixels"]
View = Literal["flip", "rot90", "rot180", "rot270"]

_TYPES = {"phash": pa.uint64(), "pdq": pa.string(), "pixels": pa.string()}
_MEANINGS = {
    "phash": "low frequencies above their median (imagehash's phash)",
    "pdq": "which of 256 low frequencies are above their median (PDQ)",
    "pixels": "XXH3-128 of the decoded upright pixels and their size",
}
_TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flip": lambda image: image[:, ::-1],
    "rot90": lambda image: np.rot90(image, 1),
    "rot180": lambda image: np.rot90(image, 2),
    "rot270": lambda image: np.rot90(image, 3),
}


class Fingerprint(Map):
    """Write a column for each of `kinds`: `phash` (64 bits), `pdq` (256 bits in hex), `pixels` (equal where all pixels are).

    views   also write `phash_views` and `pdq_views`, lists of the hash as it is and of the picture mirrored (`flip`) or turned
            left. A list, not the least of them: which one is least changes with one bit. Rows whose views meet are alike
    """

    name: ClassVar[str] = "fingerprint"

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("phash",)
    views: tuple[View, ...] = ()

    def reads(self) -> tuple[str, ...]:
        """Read the decoded image."""
        return (IMAGE,)

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the hashes, then those of all views."""
        kinds = list(dict.fromkeys(self.kinds))
        plain = [pa.field(kind, _TYPES[kind], metadata=_meta(kind, "")) for kind in kinds]
        looks = [kind for kind in kinds if kind != "pixels"] if self.views else []
        told = f", as it is and by {', '.join(self.views)}"
        return (*plain, *(pa.field(f"{kind}_views", pa.list_(_TYPES[kind]), metadata=_meta(kind, told)) for kind in looks))

    def open(self, ctx: WorkerContext) -> MapFn:
        """Return the hashing function."""
        return self._hash

    def _hash(self, batch: Batch) -> pa.Table:
        fields = self.writes()
        return pa.table(
            [pa.array([self._value(f.name, image) for image in batch.images], f.type) for f in fields], pa.schema(fields)
        )

    def _value(self, column: str, image: np.ndarray) -> object:
        kind = column.removesuffix("_views")
        if kind == column:
            return _hashed(kind, image)
        return [_hashed(kind, image), *(_hashed(kind, np.ascontiguousarray(_TURNS[view](image))) for view in self.views)]


def _hashed(kind: str, image: np.ndarray) -> int | str:
    from mmdata.media.phash import pdq, phash  # scipy and OpenCV: only a worker needs them

    if kind == "pixels":
        state = xxhash.xxh3_128(repr(image.shape).encode())
        state.update(np.ascontiguousarray(image).data)
        return str(state.hexdigest())
    return phash(image) if kind == "phash" else pdq(image)


def _meta(kind: str, more: str) -> dict[str, str]:
    unit = {"phash": "64 bits", "pdq": "64 hex", "pixels": "32 hex"}[kind]
    return {"unit": unit, "meaning": _MEANINGS[kind] + more}
