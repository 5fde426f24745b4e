"""HTTP/1.1 on one connection; the only file that imports the parser. It decides what a well-formed answer is.

The parser is llhttp, through `httptools`. Forgiven is what real servers do and what cannot be read in two ways: bare line
feeds, folded lines, spaces after a chunk's size, bytes after a closing answer. All else is a `bad_response`.
Whether the body is wanted is asked once, when the headers are complete; bytes are counted as they come.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from itertools import chain
from typing import cast

import httptools

from mmdata.net.answers import Failure

MOST_HEAD_BYTES = 64 << 10
MOST_HEADERS = 100
MOST_INTERIM = 10
# Bytes that may come for each byte of a body, beside a constant: no real server sends chunks of a few bytes.
MOST_FRAMING = 2
# The body of an answer that is not wanted is read up to here, so that the connection can be used again.
MOST_SKIPPED_BYTES = 64 << 10
BUFFER_BYTES = 64 << 10
_CRUMB_BYTES = 4 << 10
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f]")


class Reply:
    """What has come in answer to one request. Times are monotonic seconds.

    judge      called once with the reply when its headers are complete; may call `end` or `skip`
    max_bytes  size of the body that is `too_large`
    """

    def __init__(self, judge: Callable[["Reply"], None], max_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self.judge, self.max_bytes, self.loop = judge, max_bytes, loop
        self.started_s = time.monotonic()
        self.address = ""
        self.again()

    def again(self) -> None:
        """Forget what has come, for a second connection."""
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.asked_s = self.last_s = time.monotonic()
        self.body_from_s = 0.0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        # Small pieces are put together first: in chunks of a few bytes they would weigh ten times the body.
        self.crumbs = bytearray()
        self.fields: list[tuple[bytes, bytes]] = []
        self.status = self.raw_bytes = self.num_bytes = self.num_interim = 0
        self.framed = self.keep = self.skipped = self.over = False
        self.failure: Failure | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.parser.set_dangerous_leniencies(
            lenient_headers=True,  # folded lines; what else it lets through, we refuse
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
            lenient_data_after_close=True,
        )

    @property
    def untouched(self) -> bool:
        """True while not a byte of an answer has come."""
        return self.raw_bytes == 0

    @property
    def in_body(self) -> bool:
        """True once the headers are complete."""
        return self.body_from_s > 0

    def end(self, failure: Failure | None = None) -> None:
        """Finish here; the connection is closed unless the whole answer was read."""
        if not self.over:
            self.over, self.failure = True, failure
            if not self.done.done():
                self.done.set_result(None)

    def body(self) -> bytes:
        """Return the body as far as it has come."""
        self._sweep_up()
        return b"".join(self.pieces)

    def skip(self) -> None:
        """Read the body, if it is small, without keeping it."""
        self.skipped = True

    def feed(self, data: memoryview, now_s: float) -> None:
        """Take bytes as they came."""
        self.last_s = now_s
        self.raw_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.end(Failure("bad_response", "the server switches protocols"))
        except httptools.HttpParserError as error:
            # A judge or a limit may have ended the reply already; what the parser thinks of the rest does not matter.
            self.end(Failure("bad_response", f"not HTTP: {error.__context__ or error}"))
            self.keep = False
        if not self.in_body and self.raw_bytes > MOST_HEAD_BYTES:
            self.end(Failure("bad_response", f"more than {MOST_HEAD_BYTES} bytes of headers"))
        elif self.raw_bytes > 2 * MOST_HEAD_BYTES + MOST_FRAMING * self.num_bytes:
            self.end(Failure("bad_response", "chunks or trailers outweigh the body"))

    def lost(self, error: Exception | None) -> None:
        """Finish because the connection ended, in order or not."""
        if self.over:
            return
        if self.skipped or (error is None and self.in_body and not self.framed):
            self.end()
        elif isinstance(error, ssl.SSLError):
            self.end(Failure("tls", f"{error}"))
        elif error is None and self.in_body:
            self.end(Failure("short_body", f"the connection ended after {self.num_bytes} bytes of the body"))
        else:
            where = f"after {self.num_bytes} bytes of the body" if self.in_body else "before the headers were complete"
            self.end(Failure("conn_reset", f"the connection ended {where}"))

    def on_message_begin(self) -> None:
        """Begin; the parser calls this and the next four by name."""
        if self.over:
            self.keep = False  # bytes after the answer: whose they are, nobody knows

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field; `feed` bounds their bytes."""
        if not self.in_body:
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Read the header fields, and ask whether the body is wanted."""
        self.status = self.parser.get_status_code()
        if self.status < 200 or self.over:
            return
        self.body_from_s = self.last_s
        fields, headers = self.fields, self.headers
        if len(fields) > MOST_HEADERS or sum(map(len, chain.from_iterable(fields))) > MOST_HEAD_BYTES:
            self.end(Failure("bad_response", f"more than {MOST_HEADERS} header fields, or {MOST_HEAD_BYTES} bytes of them"))
            return
        for name, value in fields:
            if _CONTROL.search(value):
                self.end(Failure("bad_response", f"control characters in the header {name[:40].decode('latin-1')}"))
                return
            key, text = name.decode("latin-1").lower(), _text(value)
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        self.framed = "content-length" in headers or "transfer-encoding" in headers
        self.judge(self)

    def on_body(self, data: bytes) -> None:
        """Count and keep a piece of the body."""
        if self.over:
            return
        self.num_bytes += len(data)
        if self.skipped:
            if self.num_bytes > MOST_SKIPPED_BYTES:
                self.end()
        elif self.num_bytes > self.max_bytes:
            self.end(Failure("too_large", f"more than {self.max_bytes} bytes"))
        elif len(data) >= _CRUMB_BYTES and not self.crumbs:
            self.pieces.append(data)
        else:
            self.crumbs += data
            if len(self.crumbs) >= BUFFER_BYTES:
                self._sweep_up()

    def on_message_complete(self) -> None:
        """Finish, unless it was an interim answer."""
        if self.over:
            return
        if self.status >= 200:
            self.keep = self.parser.should_keep_alive()
            self.end()
            return
        self.num_interim += 1
        self.fields.clear()
        if self.num_interim > MOST_INTERIM:
            self.end(Failure("bad_response", f"more than {MOST_INTERIM} interim answers"))

    def _sweep_up(self) -> None:
        if self.crumbs:
            self.pieces.append(bytes(self.crumbs))
            self.crumbs.clear()


class Connection(asyncio.BufferedProtocol):
    """One connection, one request at a time.

    on_lost  called when the connection has ended, whoever ended it
    buffer   where bytes come in; connections of one loop may share it, since it is read before the next is served
    """

    def __init__(self, on_lost: Callable[["Connection"], None], buffer: memoryview) -> None:
        self.on_lost, self.buffer = on_lost, buffer
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.reply: Reply | None = None
        self.address = ""
        self.key = ("", "", 0)
        self.idle_since_s = 0.0
        self.is_open = False

    async def ask(self, request: bytes, reply: Reply) -> None:
        """Send a request and wait until its reply is over; the connection is closed unless it can be used again."""
        assert self.transport is not None
        self.reply = reply
        reply.asked_s = reply.last_s = time.monotonic()
        try:
            if not self.is_open:
                reply.lost(None)
            else:
                self.transport.write(request)
            await reply.done
        finally:
            self.reply = None
            del reply.parser  # it holds the reply in turn, and with it the body
            if not (reply.over and reply.keep):
                self.close()

    def close(self) -> None:
        """End the connection now."""
        self.is_open = False
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; asyncio calls this and the next four."""
        self.transport, self.is_open = cast("asyncio.Transport", transport), True

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give the place where bytes go."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come there."""
        if self.reply is None or self.reply.over:
            self.close()  # bytes that nobody asked for
            return
        self.reply.feed(self.buffer[:nbytes], time.monotonic())

    def eof_received(self) -> bool:
        """Note that the server has said its last."""
        self.is_open = False
        if self.reply is not None:
            self.reply.lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection has ended."""
        self.is_open = False
        if self.reply is not None:
            self.reply.lost(exc)
        self.on_lost(self)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
