"""Match the images of a document with its texts."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa

from mmdata.errors import ConfigError
from mmdata.models import Towers
from mmdata.schema import PROFILE
from mmdata.stages.by_towers import ByTowers
from mmdata.stages.verbs import Batch, MapFn, WorkerContext


class MatchTexts(ByTowers):
    """Write how well each image of a document goes with the texts beside it, and which text it is assigned to.

    Cosines of the image's embedding, which `clip_score: {embeddings: [image]}` keeps, with the texts of its document:
    `COLUMN_before` and `COLUMN_after` with the nearest text before and after the image, by `position`, among the blocks that
    are left; null where there is none. `COLUMN` with the text that the image is assigned to, and `COLUMN_position` where that
    stands: the assignment of most cosine in all in which no text has two images and no image two texts, as MMC4 does it
    (arXiv:2304.06939, section 3.2). With more images than texts some are assigned to none: null. Texts that are empty, pairs
    and blocks of text are null, too.

    The scorer must be the one whose embeddings these are. What is left of a document when this stage is reached is part of its
    key; blocks that `mmdata retry` recovers get their values beside the others, which keep theirs.
    """

    name: ClassVar[str] = "match_texts"
    whole: ClassVar[bool] = True
    documents: ClassVar[bool] = True

    images: str = "clip_score_image_embedding"
    column: str = "clip_match"

    def reads(self) -> tuple[str, ...]:
        """Read embeddings and texts, and which blocks are of one document, in which order."""
        return (self.images, "text", "sample_id", "position", "document")

    def vectors(self) -> tuple[str, ...]:
        """Return the column of the images' embeddings."""
        return (self.images,)

    def writes(self) -> tuple[pa.Field, ...]:
        """Write three cosines and a position."""
        about = {
            "_before": "with the nearest text before it", "_after": "with the nearest text after it",
            "": "with the text that it is assigned to",
        }  # fmt: skip
        cosines = [
            pa.field(
                f"{self.column}{end}",
                pa.float32(),
                metadata={"unit": "cosine", "meaning": f"cosine of a document's image {what}"},
            )
            for end, what in about.items()
        ]
        position = {"unit": "index", "meaning": "position of the text that the image is assigned to"}
        return (*cosines, pa.field(f"{self.column}_position", pa.int32(), metadata=position))

    def open(self, ctx: WorkerContext) -> MapFn:
        """Load the model and return the matching function."""
        towers = ctx.enter(self.scorer.open(ctx.device, self.resources.cpus))
        return lambda batch: self._match(towers, batch)

    def _match(self, towers: Towers, batch: Batch) -> pa.Table:
        table = batch.table
        texts, position = table.column("text").to_pylist(), table.column("position").to_numpy()
        images = table.column(self.images).combine_chunks()
        pictured = images.is_valid().to_numpy(zero_copy_only=False)
        documents = list(_documents(table, pictured, texts))
        wanted = [row for _, text_rows in documents for row in text_rows]
        _, vectors = towers.embed([], [texts[row] for row in wanted])
        where = np.full(len(texts), -1)
        where[wanted] = np.arange(len(wanted))
        lines = images.fill_null([0] * images.type.list_size) if not pictured.all() else images
        pixels = lines.flatten().to_numpy().reshape(len(texts), -1).astype(np.float64)
        if wanted and vectors.shape[1] != pixels.shape[1]:
            raise ConfigError(
                f"`{self.images}` holds embeddings of {pixels.shape[1]} numbers, those of {self.scorer.label()} have "
                f"{vectors.shape[1]}", hint="give `match_texts` the scorer whose embeddings these are",
            )  # fmt: skip
        found = np.full((3, len(texts)), np.nan, np.float32)
        assigned = np.full(len(texts), -1, np.int32)
        for image_rows, text_rows in documents:
            # In double precision: how a BLAS orders its sums then does not reach the float32 that is kept.
            cosines_IT = pixels[image_rows] @ vectors[where[text_rows]].T.astype(np.float64)
            found[:, image_rows], best = match(cosines_IT, position[image_rows], position[text_rows])
            assigned[image_rows] = np.where(best < 0, -1, position[text_rows][best])
        columns = [*(pa.array(row, mask=~np.isfinite(row)) for row in found), pa.array(assigned, mask=assigned < 0)]
        return pa.table(columns, pa.schema(self.writes(), metadata={PROFILE: json.dumps(towers.profile)}))


def match(cosines_IT: np.ndarray, images_I: np.ndarray, texts_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match images with texts by the cosines of all pairs; the others are positions, each ascending.

    returns  (3, I) cosines with the text before, after, and assigned, NaN for none; (I,) number of the text assigned, or -1
    """
    from scipy.optimize import linear_sum_assignment

    found = np.full((3, len(images_I)), np.nan, np.float32)
    after_I = np.searchsorted(texts_T, images_I)
    for row, (near_I, there_I) in enumerate(((after_I - 1, after_I > 0), (after_I, after_I < len(texts_T)))):
        places = np.flatnonzero(there_I)
        found[row, places] = cosines_IT[places, near_I[places]]
    best_I = np.full(len(images_I), -1)
    rows, columns = linear_sum_assignment(cosines_IT, maximize=True)
    best_I[rows] = columns
    found[2, rows] = cosines_IT[rows, columns]
    return found, best_I


def _documents(table: pa.Table, pictured: np.ndarray, texts: list[str | None]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of the images and of the texts of each document that has both, in the order of their positions."""
    ids = np.asarray(table.column("sample_id").to_pylist(), dtype=object)
    position = table.column("position").to_numpy()
    inside = table.column("document").to_numpy()
    worded = np.asarray([bool(text and text.strip()) for text in texts], dtype=bool) & ~pictured
    names, codes = np.unique(ids[inside].astype(str), return_inverse=True)
    rows = np.flatnonzero(inside)
    order = np.lexsort((position[rows], codes))
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    for start, stop in pairwise(bounds):
        mine = rows[order[start:stop]]
        if pictured[mine].any() and worded[mine].any():
            yield mine[pictured[mine]], mine[worded[mine]]
