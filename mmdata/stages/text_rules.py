"""Rules on captions and text blocks that need no model."""

from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from mmdata.stages.verbs import QUICK, Batch, Filter, FilterFn, Resources, WorkerContext, judged


class TextRules(Filter):
    """Judge the text of pairs and of text blocks; the first rule that fails names the reason.

    A pair without text is `text_missing`; an image block of a document has none and is not judged.
    `min_latin` is the least share of letters that are Latin, in 0..1.
    """

    name: ClassVar[str] = "text_rules"
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
        columns = [batch.table.column(name).to_pylist() for name in self.reads()]
        return judged([self._reason(*cells) for cells in zip(*columns, strict=True)])

    def _reason(self, text: str | None, document: bool, media: str | None) -> str | None:
        if text is None:
            return None if document and media is not None else "text_missing"
        words, chars = len(text.split()), len(text)
        rules = (
            ("text_few_words", words < self.min_words),
            ("text_many_words", words > self.max_words),
            ("text_short", chars < self.min_chars),
            ("text_long", chars > self.max_chars),
            ("text_not_latin", self.min_latin > 0 and latin_share(text) < self.min_latin),
        )
        return next((reason for reason, broken in rules if broken), None)


def latin_share(text: str) -> float:
    """Return the share of letters that lie in the Latin blocks (below U+0250); 1 for a text without letters."""
    letters = [char for char in text if char.isalpha()]
    return sum(char < "\u0250" for char in letters) / len(letters) if letters else 1.0
