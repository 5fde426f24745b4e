"""The rules that DataComp's baselines are made of, as stages: each judges columns that a pool, or a stage before, has.

Decided here: a rule is DataComp's to the row, quirks included (`docs/datacomp.md`). Where its script ends with an error, at a
null text, here the row goes with a reason.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from mmdata.schema import PUBLISHED_TEXT
from mmdata.stages.language import as_published
from mmdata.stages.ranks import Keys
from mmdata.stages.top import Top
from mmdata.stages.verbs import QUICK, Batch, Filter, FilterFn, Resources, WorkerContext, judged
from mmdata.text.assets import asset_of
from mmdata.text.language import GCLD3, num_tokens
from mmdata.text.wordnet import Entities, wordnet_digests

PUBLISHED_MODEL = "lid.176.bin"


class DataCompText(Filter):
    """What DataComp's `basic_filter` asks of a caption and of its image's size, or its `image_based` of a caption.

    basic    more than two words (between any white space), more than five characters, shorter side 200 or more, aspect 3 or less
    caption  more than one token of fastText's, more than five characters
    """

    name: ClassVar[str] = "datacomp_text"
    cheap: ClassVar[bool] = True

    resources: Resources = QUICK
    rule: Literal["basic", "caption"]

    def reads(self) -> tuple[str, ...]:
        """Read the caption, and for `basic` the size that the pool says."""
        return ("text", PUBLISHED_TEXT.name, *(("original_width", "original_height") if self.rule == "basic" else ()))

    def reasons(self) -> tuple[str, ...]:
        """Return the closed list of reasons."""
        sizes = ("image_small", "aspect_above") if self.rule == "basic" else ()
        return ("text_missing", "text_few_words", "text_short", *sizes)

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Return the judging function."""
        return self._judge

    def _judge(self, batch: Batch) -> pa.Table:
        texts = as_published(batch.table)
        basic = self.rule == "basic"
        sizes = [batch.table.column(name).to_pylist() for name in self.reads()[2:]]
        words = [0 if text is None else len(text.split()) if basic else num_tokens(text) for text in texts]
        reasons = [_of_text(text, num, 2 if basic else 1) for text, num in zip(texts, words, strict=True)]
        if basic:
            reasons = [reason or _of_size(*size) for reason, size in zip(reasons, zip(*sizes, strict=True), strict=True)]
        return judged(reasons)


def _of_text(text: str | None, num_words: int, most: int) -> str | None:
    if text is None:
        return "text_missing"
    return "text_few_words" if num_words <= most else "text_short" if len(text) <= 5 else None


def _of_size(width: int | None, height: int | None) -> str | None:
    if width is None or height is None or min(width, height) < 200:
        return "image_small"
    return "aspect_above" if max(width, height) / min(width, height) > 3.0 else None


class DataCompLanguage(Filter):
    """Keep rows whose language is English; a null is not. `model` says who found it."""

    name: ClassVar[str] = "datacomp_language"
    not_in_key: ClassVar[set[str]] = {"resources", "model"}  # it says who found the language, whose column has a key of its own
    cheap: ClassVar[bool] = True

    resources: Resources = QUICK
    column: str
    model: str

    def cautions(self) -> tuple[str, ...]:
        """Return whether another model stands in for the one that DataComp asks."""
        name = Path(self.model).name
        return () if self.model == GCLD3 or name == PUBLISHED_MODEL else (f"{name} stands in for {PUBLISHED_MODEL}",)

    def reads(self) -> tuple[str, ...]:
        """Read the language."""
        return (self.column,)

    def reasons(self) -> tuple[str, ...]:
        """Return the only reason."""
        return ("language_not_en",)

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Return the judging function."""
        (reason,) = self.reasons()
        return lambda batch: judged([None if code == "en" else reason for code in batch.table.column(self.column).to_pylist()])


class DataCompEntities(Filter):
    """Keep captions of which some word names a thing of ImageNet-21k, as DataComp's `text_based` has it.

    wordnet  folder of WordNet's files      entities  file of senses, a letter and an offset a line
    """

    name: ClassVar[str] = "datacomp_entities"
    version: ClassVar[int] = 2
    not_in_key: ClassVar[set[str]] = {"resources", "wordnet", "entities"}  # paths: what lies there is in `inputs`

    resources: Resources = QUICK
    wordnet: str
    entities: str

    def reads(self) -> tuple[str, ...]:
        """Read the caption."""
        return ("text", PUBLISHED_TEXT.name)

    def located(self, home: Path) -> "DataCompEntities":
        """Return itself with absolute paths."""
        return self.model_copy(update={"wordnet": str(home / self.wordnet), "entities": str(home / self.entities)})

    def inputs(self) -> tuple[str, ...]:
        """Return the digests of the files."""
        return (asset_of(Path(self.entities)).sha256, *wordnet_digests(Path(self.wordnet)))

    def cautions(self) -> tuple[str, ...]:
        """Return whether another list stands in for DataComp's."""
        asset = asset_of(Path(self.entities))
        return () if asset.published else (f"{asset.path.name} stands in for imagenet21k_wordnet_ids.txt",)

    def reasons(self) -> tuple[str, ...]:
        """Return the only reason."""
        return ("no_entity",)

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Read WordNet and return the judging function."""
        known = Entities(Path(self.wordnet), Path(self.entities))

        def work(batch: Batch) -> pa.Table:
            texts = as_published(batch.table)
            return judged([None if text is not None and known.named_in(text) else "no_entity" for text in texts])

        return work


class DataCompTop(Top):
    """Keep the highest `fraction` by `ties: datacomp`, of all rows that there are: one without a score counts as the last.

    Where that would be the threshold, nothing is kept: no score is at least NaN.
    """

    name: ClassVar[str] = "datacomp_top"

    def _keys(self, rows: pa.Table) -> Keys:
        keys = super()._keys(rows)
        return Keys(np.where(keys.counted, keys.key, np.uint64(0)), np.full(len(keys.key), True), None, keys.bits)

    def _judge(self, rows: pa.Table, value: pa.Table | None) -> pa.Table:
        assert value is not None
        if value.num_rows and value.column("_key")[0].as_py() == 0:
            value = value.slice(0, 0)
        return super()._judge(rows, value)
