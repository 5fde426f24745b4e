"""The hostile list of `benchmarks/hostile.py`: what each row's server does, and what must come of it.

Decided here: a fault is survived when nothing is stored that should not be (or the right picture is), the server is asked no
more often than the fault allows, no request is held for longer than `MOST_HELD_S`, and the canaries stay untouched.
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.net.behaviours import jpeg
from tests.net.hostile import HostileServer, http

MOST_HELD_S = 20.0
RETRIES = 2
Check = Callable[[Image.Image], bool]


@dataclass(frozen=True)
class Fault:
    """One row: its url, whether a picture may be stored, and how often its path may be asked."""

    ident: str
    what: str
    url: str
    host: str
    stored: bool = False
    most_requests: int = 1
    least_gap_s: float = 0.0
    check: Check | None = None
    opt_out: bool = False


# ident, path and query, and what differs from: not stored, one request.
_PATHS: tuple[tuple[str, str, bool, int], ...] = (
    ("N01", "/ok", True, 1), ("N02", "/slow-headers", False, 3), ("N03", "/slow-body", False, 3), ("N04", "/silence", False, 3),
    ("N07", "/huge-length", False, 1), ("N09", "/short", False, 3), ("N10", "/half-jpeg", False, 3),
    ("N11", "/two-lengths", False, 3), ("N11", "/length-and-chunked", False, 3), ("N12", "/chunked-cut", False, 3),
    ("N12", "/chunk-overflow", False, 3), ("N12", "/chunk-negative", False, 3), ("N14", "/reset", False, 3),
    ("N14", "/reset-at-once", False, 3), ("N17", "/ten-encodings", False, 1), ("N18", "/empty-gzip-members", False, 1),
    ("N19", "/redirect?to=/redirect", False, 6), ("N19", "/ping", False, 6), ("N21", "/redirect", False, 1),
    ("N21", "/location-crlf", False, 1), ("N21", "/location-long", False, 1), ("N24", "/many-headers", False, 3),
    ("N24", "/long-header", False, 3), ("N24", "/header-nul", False, 3), ("N25", "/soft-404", False, 1),
    ("N26", "/as-html", True, 1), ("N26", "/no-type", True, 1), ("N27", "/204", False, 1), ("N27", "/206", False, 1),
    ("N27", "/304", False, 1), ("N27", "/continues?times=1000", False, 3), ("N31", "/status?code=403", False, 1),
    ("N31", "/status?code=404", False, 1), ("N31", "/status?code=410", False, 1), ("N31", "/status?code=451", False, 1),
    ("N32", "/status?code=500", False, 3), ("N32", "/flaky?fail=1", True, 2),
)  # fmt: skip
_OPT_OUTS = (
    ("R11", "X-Robots-Tag: noai"), ("R11", "X-Robots-Tag: NoAI"), ("R11", "X-Robots-Tag: noimageai"),
    ("R11", "X-Robots-Tag: noindex"), ("R11", "X-Robots-Tag: none"), ("R11", "X-Robots-Tag: noml"),
    ("R12", "X-Robots-Tag: noai, unavailable_after: 25 Jun 2030 15:00:00 PST"),
    ("R12", "X-Robots-Tag: nofollow\r\nX-Robots-Tag: noai"), ("R14", "TDM-Reservation: 1"),
    ("R16", "Content-Usage: train-ai=n"),
)  # fmt: skip


def faults(server: HostileServer, local_file: str) -> list[Fault]:
    """Prepare the server and return the list; `local_file` names a real picture on this machine that nobody may read."""
    found = [
        Fault(ident, path, server.url(path, host=f"n{number}"), f"n{number}.hostile.test", stored, most)
        for number, (ident, path, stored, most) in enumerate(_PATHS)
    ]
    return [*found, *_waits(server), *_opt_outs(server), *_robots(server), *_forbidden(server, local_file), *_images(server)]


def _waits(server: HostileServer) -> list[Fault]:
    soon = http(b"", "Retry-After: 2", status="429 Slow down")
    late = http(b"", "Retry-After: 86400", status="503 Tomorrow")
    return [
        _answering(
            server, "N28", "429, Retry-After: 2, then well", [soon, http(jpeg())], stored=True, most_requests=2, least_gap_s=2
        ),
        _answering(server, "N29", "503, Retry-After: 86400", [late]),
    ]


def _opt_outs(server: HostileServer) -> list[Fault]:
    return [
        _answering(server, ident, line.replace("\r\n", "; "), [http(jpeg(), line)], opt_out=True) for ident, line in _OPT_OUTS
    ]


def _robots(server: HostileServer) -> list[Fault]:
    made = []
    for ident, what, answer in (
        ("R01", "robots.txt disallows it", http(b"User-agent: *\nDisallow: /\n")),
        ("R03", "robots.txt answers 500", http(b"", status="500 No")),
    ):
        fault = _answering(server, ident, what, [http(jpeg())], most_requests=0)
        server.on("/robots.txt", answer, host=fault.host.partition(".")[0])
        made.append(fault)
    return made


def _forbidden(server: HostileServer, local_file: str) -> list[Fault]:
    canary = server.canary("/x.jpg")
    direct = ((canary, "S01"), (canary.replace("127.0.0.2", "127.2"), "S04"), (canary.replace("127.0.0.2", "2130706434"), "S04"))
    found = [Fault(ident, url.partition("/x")[0], url, "") for url, ident in direct]
    for code in ("302", "307", "308"):
        go = http(b"", f"Location: {canary}", status=f"{code} Go")
        found.append(_answering(server, "S08", f"{code} to a forbidden address", [go]))
    return [*found, Fault("S10", "file://", f"file://{local_file}", "")]


def _images(server: HostileServer) -> list[Fault]:
    picture, png = jpeg(), _encoded(Image.fromarray(_ramp_16()), "PNG")
    turned = Image.new("RGB", (320, 160), (200, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = _encoded(turned, "JPEG", exif=exif)
    clear = _encoded(Image.new("RGBA", (300, 300), (0, 0, 0, 0)), "PNG")
    refused = (
        ("D01", "no bytes", b""), ("D01", "4 KB of NUL", bytes(4096)), ("D02", "JPEG cut at 50 %", picture[: len(picture) // 2]),
        ("D02", "JPEG cut at 99 %", picture[: len(picture) * 99 // 100]),
        ("D03", "PNG cut at 2/3", png[: len(png) * 2 // 3]),
        ("D15", "PDF", b"%PDF-1.7\n" + bytes(900)), ("D16", "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    )  # fmt: skip
    right: tuple[tuple[str, str, bytes, Check], ...] = (
        ("D18", "EXIF orientation 6", sideways, lambda image: image.height > image.width),
        ("D20", "16-bit grey ramp", png, lambda image: abs(float(np.mean(np.asarray(image.convert("L")))) - 127.5) < 2),
        ("D21", "transparent RGBA", clear, lambda image: float(np.mean(np.asarray(image.convert("L")))) > 253),
    )
    bad = [_answering(server, ident, what, [http(data)], most_requests=3) for ident, what, data in refused]
    return bad + [_answering(server, ident, what, [http(data)], stored=True, check=check) for ident, what, data, check in right]


def _answering(server: HostileServer, ident: str, what: str, answers: list[bytes], **rules: object) -> Fault:
    """Give a new host of the server its answers."""
    name = f"{ident.lower()}-{zlib.crc32(what.encode()):08x}"
    server.on("/picture", list(answers), host=name)
    return Fault(ident, what, server.url("/picture", host=name), f"{name}.hostile.test", **rules)  # type: ignore[arg-type]


def _ramp_16() -> "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]":
    return np.tile(np.linspace(0, 65535, 320).astype(np.uint16), (240, 1))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
