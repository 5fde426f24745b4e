"""Fetch media by url, make it the asked size, and keep it in img2dataset's layout.

Decided here: what a plan may say of a download, and what enters its key. The work itself is `download_job`.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from mmdata.config import Model
from mmdata.media import Resize
from mmdata.net import TRANSIENT, Limits, Signals
from mmdata.schema import PAYLOAD, PAYLOAD_COLUMN
from mmdata.stages.deny import Deny
from mmdata.stages.verbs import Map, MapFn, Resources, WorkerContext

AGENT = "mmdata/0.1"
PATIENCE_S = 7200.0


class VerifyHash(Model):
    """A column of the list that holds the hash, in hex, of the bytes that were there when the list was made."""

    column: str
    kind: Literal["md5", "sha256", "sha512"] = "sha256"


class Download(Map, Resize):
    """Write `payload`, the SHA-256 of the original bytes, and the original's size and format.

    How images are made has img2dataset's words (`image_size`, `resize_mode`, ...); clocks, caps and manners are `limits`.

    connections  at once in one task; as many again may be slow ones
    contact      an address or a page that goes into the user agent, so that a server's owner can reach you
    robots       obey robots.txt; `signals` are the other opt-outs, each can be switched off by name
    passes       rows that failed in a way that may pass are asked about again when all others are done, so often in all
    patience_s   rows not done after so many seconds end as `throttled`; `mmdata retry` asks about them again
    verify_hash  a row whose bytes are not those of the list ends as `hash_mismatch`, and nothing of it is stored
    deny         lists of what must not be stored
    bbox_col     a column of boxes ([left, top, right, bottom], each 0 to 1) that are blurred, as DataComp does with faces
    resolvers    name servers that are asked in place of the system's, ADDRESS[:PORT] (extra `dns`)
    access       a file with a proxy and headers by host; it stays where it is (see `access`)
    """

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 2
    whole: ClassVar[bool] = True
    # Refusals are final unless they are named.
    transient: ClassVar[tuple[str, ...]] = (*TRANSIENT, "http_4xx", "robots", "tls")
    not_in_key: ClassVar[set[str]] = {"resources", "connections", "contact", "passes", "patience_s", "resolvers", "access"}

    resources: Resources = Resources(call_s=PATIENCE_S + 1800, row_s=0.1)
    limits: Limits = Limits()
    connections: Annotated[int, Field(ge=1, le=4096)] = 64
    contact: str = ""
    robots: bool = True
    signals: Signals = Signals()
    passes: Annotated[int, Field(ge=1, le=10)] = 3
    patience_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = PATIENCE_S
    verify_hash: VerifyHash | None = None
    deny: Deny | None = None
    bbox_col: str | None = None
    resolvers: tuple[str, ...] = ()
    access: str = ""

    def reads(self) -> tuple[str, ...]:
        """Read the url; text and id travel into the layout's own files."""
        asked = [self.verify_hash.column] if self.verify_hash is not None else []
        return ("url", "text", "media", "sample_id", *asked, *self.boxes())

    def boxes(self) -> tuple[str, ...]:
        """Return the column of what is to be blurred."""
        return () if self.bbox_col is None else (self.bbox_col,)

    def inputs(self) -> tuple[str, ...]:
        """Return the SHA-256 of the deny lists."""
        return self.deny.digests() if self.deny is not None else ()

    def cautions(self) -> tuple[str, ...]:
        """Return which wishes of others are not obeyed."""
        robots = () if self.robots else ("robots.txt is not obeyed",)
        return (*robots, *(f"the opt-out `{name}` is not obeyed" for name in self.signals.switched_off()))

    def writes(self) -> tuple[pa.Field, ...]:
        """Write the payload and what only the original bytes can tell."""
        return (
            pa.field(PAYLOAD_COLUMN, PAYLOAD, metadata={"unit": "ref", "meaning": "where the stored bytes lie"}),
            pa.field("raw_sha256", pa.string(), metadata={"unit": "hex", "meaning": "SHA-256 of the bytes downloaded"}),
            pa.field("original_width", pa.int32(), metadata={"unit": "px", "meaning": "width as served, upright"}),
            pa.field("original_height", pa.int32(), metadata={"unit": "px", "meaning": "height as served, upright"}),
            pa.field("format", pa.string(), metadata={"unit": "name", "meaning": "format as served"}),
        )

    def open(self, ctx: WorkerContext) -> MapFn:
        """Return the function that downloads a whole partition; its decoder children live as long as the worker."""
        from mmdata.stages.download_job import DownloadJob
        from mmdata.stages.download_kitchen import Kitchen

        kitchen = ctx.enter(Kitchen(self, ctx))
        work: Callable[..., pa.Table] = lambda batch: DownloadJob(kitchen, batch).run()  # noqa: E731 - one job a batch
        return work

    @property
    def agent(self) -> str:
        """The user agent: honest, with the user's contact."""
        return f"{AGENT} (+{self.contact})" if self.contact else AGENT

    @property
    def resize(self) -> Resize:
        """How images are made."""
        return Resize.model_validate({name: getattr(self, name) for name in Resize.model_fields})
