"""Rules on captions and text blocks that need no model."""

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmdata.stages.verbs import QUICK, Batch, Filter, FilterFn, Resources, WorkerContext, first_reason

if TYPE_CHECKING:
    import polars as pl

_FIRST_WORDS = 16  # a pattern of more would be slower than a count
_SPACE, _WORD = r"[\s\x1c-\x1f]", r"[^\s\x1c-\x1f]"  # as `str.split` has it


class TextRules(Filter):
    """Judge the text of pairs and of text blocks; the first rule that fails names the reason.

    A pair without text is `text_missing`; an image block of a document has none and is not judged.
    `min_latin` is the least share of letters that are Latin, in 0..1.
    """

    name: ClassVar[str] = "text_rules"
    version: ClassVar[int] = 2
    cheap: ClassVar[bool] = True

    resources: Resources = QUICK
    min_words: Annotated[int, Field(ge=0)] = 1
    max_words: Annotated[int, Field(ge=1)] = 10_000
    min_chars: Annotated[int, Field(ge=0)] = 1
    max_chars: Annotated[int, Field(ge=1)] = 65_536
    min_latin: Annotated[float, Field(ge=0, le=1)] = 0.0

    def reads(self) -> tuple[str, ...]:
        """Read the text, and what kind of row it is on."""
        return ("text", "document", "media")

    def reasons(self) -> tuple[str, ...]:
        """Return the closed list of reasons."""
        return ("text_missing", "text_few_words", "text_many_words", "text_short", "text_long", "text_not_latin")

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Return the judging function."""
        return self._judge

    def _judge(self, batch: Batch) -> pa.Table:
        import polars as pl

        text = pl.Series(pl.from_arrow(batch.table.column("text").combine_chunks().cast(pa.string())))
        chars = text.str.len_chars().fill_null(0).to_numpy()
        needless = batch.table.column("document").to_numpy() & batch.table.column("media").is_valid().to_numpy()
        missing = text.is_null().to_numpy()
        given = ~missing
        rules = [
            ("text_missing", missing & ~needless),
            ("text_few_words", given & _few_words(text, self.min_words)),
            ("text_many_words", given & _many_words(text, chars, self.max_words)),
            ("text_short", given & (chars < self.min_chars)),
            ("text_long", given & (chars > self.max_chars)),
            ("text_not_latin", given & _few_latin(text, chars, self.min_latin)),
        ]
        return pa.table({"reason": first_reason(rules, len(text)), "value": pa.nulls(len(text), pa.float32())})


def _few_words(text: "pl.Series", least: int) -> np.ndarray:
    """Say of which texts the words are fewer; most texts need a look at their first words alone."""
    if least == 0:
        return np.zeros(len(text), bool)
    if least <= _FIRST_WORDS:
        enough: np.ndarray = (
            text.str.contains(f"^{_SPACE}*(?:{_WORD}+{_SPACE}+){{{least - 1}}}{_WORD}").fill_null(True).to_numpy()
        )
        return ~enough
    return _numbers(text.str.count_matches(f"{_WORD}+")) < least


def _many_words(text: "pl.Series", chars: np.ndarray, most: int) -> np.ndarray:
    """Say of which texts the words are more; a short text cannot hold so many."""
    many = np.zeros(len(text), bool)
    long = np.flatnonzero(chars > 2 * most)
    if len(long):
        many[long] = _numbers(text.gather(long).str.count_matches(f"{_WORD}+")) > most
    return many


def _few_latin(text: "pl.Series", chars: np.ndarray, least: float) -> np.ndarray:
    """Say of which texts less than a share of the letters is Latin; all letters of ASCII are."""
    few = np.zeros(len(text), bool)
    foreign = np.flatnonzero(_numbers(text.str.len_bytes()) > chars) if least > 0 else few[:0]
    if len(foreign):
        few[foreign] = latin_shares(text.gather(foreign)) < least
    return few


def latin_shares(text: "pl.Series") -> np.ndarray:
    """Return the share of the letters that lie in the Latin blocks (below U+0250), (N,) float64; 1 without letters."""
    letters, latin = (_numbers(text.str.count_matches(pattern)) for pattern in (r"\p{L}", r"[\p{L}&&[\x00-\x{24F}]]"))
    return np.where(letters == 0, 1.0, latin / np.maximum(letters, 1))


def _numbers(values: "pl.Series") -> np.ndarray:
    numbers: np.ndarray = values.fill_null(0).to_numpy()
    return numbers.astype(np.int64)
