"""Judge texts by published rules: rows by the columns of `text_statistics`, documents by all of their text."""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from mmdata.schema import ROW, VERDICT_FIELDS
from mmdata.stages.passes import Judge, Pass
from mmdata.stages.text_statistics import ByRules, RuleNames
from mmdata.stages.verbs import QUICK, Batch, Filter, FilterFn, GlobalFilter, Resources, WorkerContext
from mmdata.text.rules import Rule, judge, rules_of, statistics_of


class TextQuality(Filter):
    """Judge captions and text blocks by sets of rules, such as `rules: [gopher_quality, c4]`.

    `text_statistics` must come before, and says which sets there are. The first rule that is broken names the reason. A pair
    without text is `text_missing`; an image block of a document has none and is not judged.
    """

    name: ClassVar[str] = "text_quality"
    cheap: ClassVar[bool] = True

    resources: Resources = QUICK
    rules: RuleNames

    def reads(self) -> tuple[str, ...]:
        """Read the statistics that its rules are about, and what kind of row it is on."""
        return (*statistics_of(rules_of(self.rules)), "text", "document", "media")

    def numeric(self) -> tuple[str, ...]:
        """Return the statistics."""
        return statistics_of(rules_of(self.rules))

    def reasons(self) -> tuple[str, ...]:
        """Return the ways to break the rules."""
        return ("text_missing", *_reasons(rules_of(self.rules)))

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Return the judging function."""
        rules = rules_of(self.rules)

        def work(batch: Batch) -> pa.Table:
            values = {name: _numbers(batch.table.column(name)) for name in statistics_of(rules)}
            reasons, found = judge(rules, values)
            null, block = batch.table.column("text").is_null(), batch.table.column("media").is_valid()
            image_block = batch.table.column("document").to_numpy() & block.to_numpy()
            reasons[null.to_numpy() & ~image_block] = "text_missing"
            return pa.table({
                "reason": pa.array(reasons, pa.string()), "value": pa.array(found.astype(np.float32), from_pandas=True),
            })  # fmt: skip

        return work


class DocumentQuality(ByRules, GlobalFilter):
    """Judge documents by what is left of their text blocks, one after the other with a blank line between; whole documents go.

    rules  sets of rules, by default OBELICS' cutoffs for documents; see `text_statistics`      lists  as there

    Pairs are not judged, and neither is a document without any text.
    """

    name: ClassVar[str] = "document_quality"

    rules: RuleNames = ("obelics_document",)

    def reads(self) -> tuple[str, ...]:
        """Read the texts and their places."""
        return ("sample_id", "position", "document", "text")

    def reasons(self) -> tuple[str, ...]:
        """Return the ways to break the rules."""
        return _reasons(rules_of(self.rules))

    def passes(self) -> tuple[Pass, ...]:
        """Judge the documents of each partition, which holds them whole."""
        return (Judge(self._judge),)

    def _judge(self, rows: pa.Table, _: pa.Table | None) -> pa.Table:
        from mmdata.text.statistics import count

        rows, rules = rows.filter(rows.column("document")), rules_of(self.rules)
        ids, texts = _joined(rows)
        reasons, found = judge(rules, count(texts, statistics_of(rules), self.lists.read()))
        bad = {ident: at for at, ident in enumerate(ids) if reasons[at] is not None}
        at = np.array([bad.get(ident, -1) for ident in rows.column("sample_id").to_pylist()], np.int64)
        num, at_bad = int((at >= 0).sum()), at[at >= 0]
        columns = [
            rows.column(ROW).filter(pa.array(at >= 0)), pa.array(reasons[at_bad], pa.string()),
            pa.nulls(num, pa.string()), pa.nulls(num, pa.int32()), pa.array(found[at_bad].astype(np.float32)),
        ]  # fmt: skip
        return pa.table(columns, pa.schema(VERDICT_FIELDS))


def _joined(table: pa.Table) -> tuple[list[str], list[str]]:
    """Return the ids of the documents that hold text, and their texts."""
    texts: dict[str, list[str]] = {}
    for row in table.select(["sample_id", "position", "text"]).sort_by("position").to_pylist():
        if row["text"] is not None:
            texts.setdefault(row["sample_id"], []).append(row["text"])
    return list(texts), ["\n\n".join(blocks) for blocks in texts.values()]


def _reasons(rules: tuple[Rule, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for rule in rules for reason in rule.reasons()))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = column.to_numpy().astype(np.float64)
    return found
