"""Boolean expressions over columns, as plain text: what may stand in `keep: {where: ...}`.

Decided here: the text is SQL as polars reads it, of one row: no aggregate, no window function, no query inside it, no clock,
and no cast that can fail. Numbers are compared in the column's own precision. A NaN counts as null, and null is neither true nor
false: `x > 1 or y` is null where x is null and y is not true.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mmdata.errors import ConfigError, first_line

if TYPE_CHECKING:
    import polars as pl

MAX_CHARS = 4_000
MAX_NESTING = 12  # polars' parser takes twice as long for each pair of parentheses within another
# Parts of an expression that look at more than one row, or at the clock; names as polars has them.
_OF_MANY = (
    "Agg",
    "Over",
    "Window",
    "Rolling",
    "Len",
    "SubPlan",
    "Filter",
    "Sort",
    "SortBy",
    "Slice",
    "Gather",
    "Explode",
    "Eval",
)
_OF_THE_CLOCK = ("Datetime", "Date", "Time", "Duration", "DatetimeOwned")
_STRICT = "a cast that can fail"
_TRIES: dict[str, list[Any]] = {
    "text": ["", "a", "http://host/a.jpg", "12", None], "number": [0, 1, 2, 200, None], "flag": [True, False, True, False, None],
}  # fmt: skip


@lru_cache(maxsize=64)
def parse(text: str) -> "pl.Expr":
    """Return the expression that a text says; raise ConfigError where it says none, or one that is not of a row."""
    import polars as pl

    if len(text) > MAX_CHARS or _nesting(text) > MAX_NESTING:
        raise _wrong(text, f"it is longer than {MAX_CHARS:,} characters or nests more than {MAX_NESTING} deep", None)
    try:
        found = pl.sql_expr(text)
        parts = json.loads(found.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
        raise _wrong(text, first_line(error), "write SQL, as in `width >= 200 and (score > 0.3 or source = 'laion')`") from None
    _refuse(text, set(_words(parts)))
    return found


def columns_of(text: str) -> tuple[str, ...]:
    """Return the columns that an expression names, in the order of their names."""
    return tuple(sorted(set(parse(text).meta.root_names())))


def check(text: str, fields: dict[str, pa.Field]) -> None:
    """Raise ConfigError unless an expression is true or false of each row of a table with these columns."""
    import polars as pl

    names = columns_of(text)
    if not names:
        raise _wrong(text, "it names no column", f"columns: {', '.join(sorted(fields))}")
    table = pa.table([_tries(fields[name].type) for name in names], list(names))
    types = ", ".join(f"`{name}` is {fields[name].type}" for name in names)
    try:
        kind = pl.DataFrame(pl.from_arrow(table)).lazy().select(parse(text)).collect_schema().dtypes()[0]
        if kind != pl.Boolean:
            raise _wrong(text, f"it gives {kind}, not true or false", f"compare it with something; {types}")
        together = evaluate(text, table).to_pylist()
        alone = [evaluate(text, table.slice(place, 1)).to_pylist() for place in range(table.num_rows)]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _wrong(text, first_line(error), types) from None
    if alone != [[value] for value in together]:
        raise _wrong(text, "what it says of a row depends on other rows", "use `top`, `cap` or `dedupe` to compare rows")


def evaluate(text: str, table: pa.Table) -> pa.Array:
    """Return true, false or null for each row of a table that has the columns."""
    import polars as pl

    frame = pl.DataFrame(pl.from_arrow(table.select(columns_of(text))))
    floats = [pl.col(name).fill_nan(None) for name, kind in frame.schema.items() if kind.is_float()]
    return frame.with_columns(floats).select(said=parse(text)).to_series().to_arrow()


def _refuse(text: str, words: set[str]) -> None:
    if words & set(_OF_MANY):
        raise _wrong(
            text, "it looks at more than one row", "aggregates, window functions and queries are refused; see `top`, `cap`"
        )
    if words & set(_OF_THE_CLOCK):
        raise _wrong(text, "it asks for the time", "a verdict must not depend on when it is given")
    if _STRICT in words:
        raise _wrong(
            text, "a `cast` ends a run at the first row that it cannot be done for", "write `try_cast(... as ...)`: null there"
        )


def _words(parts: Any, *, literal: bool = False) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield the names of the parts of an expression, not the texts and columns that its writer named."""
    if isinstance(parts, str) and not literal:
        yield parts
    elif isinstance(parts, list):
        for part in parts:
            yield from _words(part, literal=literal)
    elif isinstance(parts, dict):
        for name, part in parts.items():
            yield name
            if name == "Cast" and part.get("options") == "Strict" and part.get("dtype") != {"Literal": "Boolean"}:
                yield _STRICT
            yield from _words(part, literal=literal or name in ("Literal", "Column", "Alias", "FieldByName"))


def _nesting(text: str) -> int:
    depth = most = 0
    for char in text:
        depth += (char == "(") - (char == ")")
        most = max(most, depth)
    return most


def _tries(kind: pa.DataType) -> pa.Array:
    """Return some values of a type, each twice, and a null."""
    if pa.types.is_boolean(kind):
        values = _TRIES["flag"]
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = _TRIES["number"]
        return pa.array([None if value is None else value % 128 for value in values] * 2, pa.int64()).cast(kind)
    elif pa.types.is_string(kind):
        values = _TRIES["text"]
    else:
        return pa.nulls(10, kind)
    return pa.array(values * 2, kind)


def _wrong(text: str, what: str, hint: str | None) -> ConfigError:
    return ConfigError(f"`where: {text if len(text) <= 200 else text[:200] + '...'}`: {what}", hint=hint)
