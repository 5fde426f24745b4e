"""What flows: the columns that every row has, the payload reference, verdicts, and the closed list of outcomes.

A row is one media item and its text, or one block of a document. Its identity is (partition, row number); published
ids repeat, so `sample_id` groups rows into samples and never identifies one.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """A column with its Arrow type, its unit and what it means."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str

    def field(self) -> pa.Field:
        """Return the Arrow field, with unit and meaning as metadata."""
        return pa.field(self.name, self.type, metadata={"unit": self.unit, "meaning": self.meaning})


CAPTION = pa.struct([pa.field("text", pa.string()), pa.field("kind", pa.string())])

# Parts of an image, [left, top, right, bottom] each: 0 to 1 of its width and height.
BOXES = pa.list_(pa.list_(pa.float64()))

# Where the bytes of a media item lie. `set` is a folder of the run (or a foreign one, by URL), `tar` a file in it.
# `trusted` marks bytes that we encoded ourselves: all others are decoded in the jail.
PAYLOAD = pa.struct(
    [
        pa.field("set", pa.string()),
        pa.field("tar", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("trusted", pa.bool_()),
    ]
)

ROW_COLUMNS: tuple[Column, ...] = (
    Column("sample_id", pa.string(), "32 hex", "rows of one sample share it; a document's blocks differ in `position`"),
    Column("position", pa.int32(), "index", "place of the row in its sample; 0 for a pair"),
    Column("document", pa.bool_(), "flag", "the row is one block of an interleaved document"),
    Column("url", pa.string(), "url", "where the media lies; null for a text block"),
    Column("text", pa.string(), "text", "caption or text block; null = not given, empty = given"),
    Column("media", pa.string(), "image | video", "kind of media; null for a text block"),
    Column("source", pa.string(), "name", "catalog entry that the row came from"),
    Column("captions", pa.list_(CAPTION), "list", "further captions of the same media"),
)
BASE_FIELDS: tuple[pa.Field, ...] = tuple(column.field() for column in ROW_COLUMNS)
BASE_NAMES: tuple[str, ...] = tuple(column.name for column in ROW_COLUMNS)
# Every source says of every row what it had to mend; the leading `_` keeps it out of the samples' JSON.
REPAIRED = Column("_repaired", pa.string(), "names", "what was mended in the row's texts: nul, utf8, cut; null = nothing").field()

# A pool's own text where that had to be mended, null elsewhere: DataComp's baselines judge what was published.
PUBLISHED_TEXT = Column("_published", pa.string(), "text", "the text before it was mended; null where it was not").field()

# Row number in its row space, and the outcome that a stage's own trouble gave to the row (null = fine).
ROW = "_row"
OUTCOME = "_outcome"
# Number of the row's partition, where rows of several come together.
PARTITION = "_partition"

# Metadata of a table: what the numbers in it depend on besides what was asked, as JSON.
PROFILE = b"profile"
# Metadata of a table of verdicts: what people are to be told of the work, such as how much of what there is was found.
NOTE = b"note"

# Reasons are few: the columns of Filters hold each name once, and places of names.
REASON = pa.dictionary(pa.int32(), pa.string())

VERDICT_FIELDS: tuple[pa.Field, ...] = (
    pa.field(ROW, pa.int64()),
    pa.field("reason", pa.string()),
    pa.field("keeper_id", pa.string()),
    pa.field("keeper_position", pa.int32()),
    pa.field("value", pa.float32()),
)

# Columns made by the engine when a stage asks for them; they are never stored.
IMAGE = "image"
PAYLOAD_COLUMN = "payload"

OUTCOMES: tuple[str, ...] = (
    "ok", "bad_row", "blocked_scheme", "blocked_address", "blocked_port", "denylisted", "robots", "opted_out", "dns",
    "tls", "timeout_connect", "timeout_headers", "timeout_idle", "timeout_total", "too_slow", "conn_reset",
    "short_body", "bad_response", "bad_encoding", "too_large", "redirect_limit", "http_4xx", "http_5xx", "throttled",
    "not_media", "unsupported_format", "truncated_media", "too_many_pixels", "decode_error", "decoder_timeout",
    "decoder_oom", "decoder_crashed", "image_too_small", "image_area_too_large", "aspect_ratio_too_large", "hash_mismatch",
    "split", "sample_incomplete", "scorer_error",
)  # fmt: skip
SPLIT = "split"
INCOMPLETE = "sample_incomplete"


def embedding(dim: int) -> pa.DataType:
    """Return the type of an embedding: `dim` float16, kept in `.npy` files beside the columns, one line a row held."""
    return pa.list_(pa.float16(), dim)


def is_embedding(kind: pa.DataType) -> bool:
    """Say whether a column holds embeddings."""
    return bool(pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16())


def embedding_array(lines: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Return (N, D) numbers as a column of embeddings, null where `missing`, (N,) bool, says so."""
    flat = pa.array(np.ascontiguousarray(lines, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, lines.shape[1], mask=None if missing is None else pa.array(missing))
