"""How the hostile server misbehaves: one entry of `BEHAVIOURS` a path; `option`s come by query.

`every` is the pause between two bytes in seconds; `header` (repeatable) adds a header line to `/ok`.
"""

import asyncio
import contextlib
import functools
import gzip
import io
import zlib

from PIL import Image

from tests.net.hostile import MOST_BYTES, Behaviour, Exchange, http

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"


@functools.cache
def jpeg(width: int = 320, height: int = 240) -> bytes:
    """Return a real picture."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@functools.cache
def gzip_bomb() -> bytes:
    """Return 1 MiB that decompresses to 1 GiB of zeros; its blocks repeat, so making it costs little."""
    packer, zeros = zlib.compressobj(9, wbits=31), bytes(16 << 20)
    first = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * 63 + packer.flush()


def raw(data: bytes) -> Behaviour:
    """Send these bytes; go on with the connection only where they say how long they are and do not close it."""

    async def send(exchange: Exchange) -> None:
        await exchange.send(data)
        head = data.partition(b"\r\n\r\n")[0].lower()
        exchange.keep = b"\r\nconnection: close" not in head and _is_whole(data)

    return send


async def missing(exchange: Exchange) -> None:
    """404 for what nobody set, robots.txt too."""
    await raw(http(b"", status="404 Not Found"))(exchange)


async def ok(exchange: Exchange) -> None:
    """A healthy picture; `header` adds header lines, `code` changes the status."""
    status = exchange.option("code", "200")
    await raw(http(jpeg(), "Content-Type: image/jpeg", *exchange.query.get("header", []), status=f"{status} X"))(exchange)


async def sized(exchange: Exchange) -> None:
    """A body of `bytes` bytes."""
    await raw(http(bytes(int(exchange.option("bytes", "8192")))))(exchange)


async def status(exchange: Exchange) -> None:
    """`code`, with `Retry-After: after` where given."""
    after = exchange.query.get("after", [])
    await raw(http(b"", *(f"Retry-After: {value}" for value in after), status=f"{exchange.option('code', '500')} X"))(exchange)


async def flaky(exchange: Exchange) -> None:
    """Fail the first `fail` requests of this very url with 500, then answer well."""
    if len([hit for hit in exchange.server.hits if hit.path == exchange.hit.path]) <= int(exchange.option("fail", "1")):
        await raw(http(b"", status="500 Not yet"))(exchange)
    else:
        await ok(exchange)


async def silence(exchange: Exchange) -> None:
    """Accept, then say nothing until the visitor leaves."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(float(exchange.option("seconds", "3600"))):
            await exchange.reader.read()


async def slow_headers(exchange: Exchange) -> None:
    """A status line that never ends."""
    await exchange.drip(b"HTTP/1.1 200 O" + b"K" * 4096, float(exchange.option("every", "1")))


async def slow_body(exchange: Exchange) -> None:
    """A healthy picture byte by byte, with its true length."""
    await exchange.send(_HEAD + f"Content-Length: {len(jpeg())}\r\n\r\n".encode())
    await exchange.drip(jpeg(), float(exchange.option("every", "1")))


async def late_body(exchange: Exchange) -> None:
    """Headers and half of the picture, then nothing."""
    await exchange.send(http(jpeg()[: len(jpeg()) // 2], length=len(jpeg())))
    await silence(exchange)


async def endless(exchange: Exchange) -> None:
    """A body without length or end."""
    await exchange.send(_HEAD + b"\r\n")
    for _ in range(MOST_BYTES >> 16):
        await exchange.send(bytes(1 << 16))


async def endless_chunk(exchange: Exchange) -> None:
    """Chunks that are all framing: `part` says whether in an extension or in trailers (`extension`, `trailer`, `trailers`)."""
    begin = {"extension": b"1;x=", "trailer": b"1\r\nx\r\n0\r\nX: ", "trailers": b"1\r\nx\r\n0\r\n"}
    part = exchange.option("part", "extension")
    await exchange.send(_chunked(begin[part]))
    for _ in range(MOST_BYTES >> 16):
        await exchange.send((b"X: y\r\n" if part == "trailers" else b"y" * 6) * 10_000)


async def crumbs(exchange: Exchange) -> None:
    """A body of `bytes` bytes in chunks of one byte."""
    await exchange.send(_chunked(b""))
    for _ in range(int(exchange.option("bytes", "1000000")) >> 10):
        await exchange.send(b"1\r\nx\r\n" * 1024)
    await exchange.send(b"0\r\n\r\n")
    exchange.keep = True


async def half_jpeg(exchange: Exchange) -> None:
    """Half of a picture, no length, and an orderly end."""
    await exchange.send(_HEAD + b"Connection: close\r\n\r\n" + jpeg()[: len(jpeg()) // 2])


async def reset(exchange: Exchange) -> None:
    """RST in the middle of the body."""
    await exchange.send(http(jpeg()[:2000], length=len(jpeg())))
    await asyncio.sleep(0.05)
    exchange.reset()


async def reset_at_once(exchange: Exchange) -> None:
    """RST in place of an answer."""
    exchange.reset()


async def redirect(exchange: Exchange) -> None:
    """`code` to `to`; without `to` there is no Location."""
    to = exchange.query.get("to", [])
    await raw(http(b"", *(f"Location: {value}" for value in to), status=f"{exchange.option('code', '302')} Go"))(exchange)


async def refresh(exchange: Exchange) -> None:
    """A `Refresh` header, which leads nowhere."""
    await raw(http(jpeg(), f"Refresh: 0; url={exchange.option('to', '/')}"))(exchange)


async def ping(exchange: Exchange) -> None:
    """To /pong and back for ever, with another query each time."""
    turn, other = int(exchange.option("turn", "0")) + 1, "/pong" if exchange.hit.path.startswith("/ping") else "/ping"
    await raw(http(b"", f"Location: {other}?turn={turn}", status="302 Go"))(exchange)


async def many_headers(exchange: Exchange) -> None:
    """`lines` header lines of some 20 bytes."""
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    await exchange.send(b"".join(b"X-Header-%05d: value\r\n" % n for n in range(int(exchange.option("lines", "5000")))))
    await exchange.send(b"Content-Length: 0\r\n\r\n")


async def long_header(exchange: Exchange) -> None:
    """One header of `bytes` bytes."""
    await exchange.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(int(exchange.option("bytes", str(10 << 20))) >> 16):
        await exchange.send(b"y" * (1 << 16))
    await exchange.send(b"\r\nContent-Length: 0\r\n\r\n")


async def continues(exchange: Exchange) -> None:
    """`times` interim answers, then a healthy one."""
    for _ in range(int(exchange.option("times", "1000"))):
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await ok(exchange)


async def keep_then_close(exchange: Exchange) -> None:
    """A healthy answer that promises to keep the connection, and an end before the next request is read."""
    await ok(exchange)
    exchange.keep = False


async def reset_if_reused(exchange: Exchange) -> None:
    """A healthy answer to the first request of a connection, an end in place of an answer to the second."""
    if [hit.connection for hit in exchange.server.hits].count(exchange.hit.connection) == 1:
        await ok(exchange)


def tunnel(port: int) -> Behaviour:
    """Let whoever asks by CONNECT talk to a port of this machine."""

    async def relay(exchange: Exchange) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await exchange.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        try:
            await asyncio.gather(_copy(exchange.reader, writer), _copy(reader, exchange.writer))
        finally:
            writer.close()

    return relay


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


def _encoded(data: bytes, encoding: str) -> bytes:
    return http(data, "Content-Type: image/jpeg", f"Content-Encoding: {encoding}")


def _chunked(data: bytes, *headers: bytes) -> bytes:
    return _HEAD + b"".join(line + b"\r\n" for line in headers) + b"Transfer-Encoding: chunked\r\n\r\n" + data


def _is_whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = {line.partition(b":")[2].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")}
    return lengths == {str(len(body)).encode()} or (not lengths and body.endswith(b"\r\n0\r\n\r\n"))


def _answers() -> dict[str, bytes]:
    picture = jpeg()
    return {
        "/huge-length": http(b"x", length=10 << 30),
        "/short": http(picture[:1000], length=len(picture)),
        "/two-lengths": http(picture, f"Content-Length: {len(picture) - 1}"),
        "/same-length-twice": http(picture, f"Content-Length: {len(picture)}"),
        "/length-and-chunked": _chunked(b"4\r\ndata\r\n0\r\n\r\n", b"Content-Length: 4"),
        "/negative-length": http(picture, length=-1),
        "/chunked": _chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(picture), picture)),
        "/chunked-cut": _chunked(b"4\r\ndata\r\n"),
        "/chunk-overflow": _chunked(b"FFFFFFFFFFFFFFFF\r\ndata\r\n"),
        "/chunk-negative": _chunked(b"-4\r\ndata\r\n0\r\n\r\n"),
        "/gzip-bomb": _encoded(gzip_bomb(), "gzip"),
        "/ten-encodings": _encoded(picture, ", ".join(["gzip"] * 10)),
        "/empty-gzip-members": _encoded(gzip.compress(b"") * 50_000, "gzip"),
        "/location-crlf": http(b"", "Location: /ok%0d%0aX: y\r\n\tz", status="302 Go"),
        "/location-long": http(b"", "Location: /" + "y" * (1 << 20), status="302 Go"),
        "/header-nul": http(picture, "X-Nul: a\0b"),
        "/soft-404": http(b"<html>Nothing here</html>", "Content-Type: image/jpeg"),
        "/as-html": http(picture, "Content-Type: text/html"),
        "/no-type": http(picture),
        "/204": http(b"", status="204 No Content"),
        "/206": http(picture, f"Content-Range: bytes 0-{len(picture) - 1}/{len(picture) * 2}", status="206 Partial Content"),
        "/304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
        "/switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "/cookie": http(picture, "Set-Cookie: id=1; Path=/", "Set-Cookie: other=2; Domain=hostile.test"),
        "/not-http": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "/nothing": b"",
    }


BEHAVIOURS: dict[str, Behaviour] = {
    "/ok": ok, "/sized": sized, "/status": status, "/flaky": flaky, "/silence": silence, "/slow-headers": slow_headers,
    "/slow-body": slow_body, "/late-body": late_body, "/endless": endless, "/endless-chunk": endless_chunk, "/crumbs": crumbs,
    "/half-jpeg": half_jpeg, "/reset": reset,
    "/reset-at-once": reset_at_once, "/redirect": redirect, "/refresh": refresh, "/ping": ping, "/pong": ping,
    "/many-headers": many_headers, "/long-header": long_header, "/continues": continues,
    "/keep-then-close": keep_then_close, "/reset-if-reused": reset_if_reused,
    **{path: raw(data) for path, data in _answers().items()},
}  # fmt: skip
