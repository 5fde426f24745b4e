"""Files that are small on the wire and huge in memory, made once and kept beside the benchmark's images."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

_BLOCK_ROWS = 500


def png(width: int, height: int, bits: int, colour: int) -> bytes:
    """Return a valid black PNG; `colour` is the header's colour type (0 grey, 6 RGBA), written without holding its pixels."""
    channels = {0: 1, 6: 4}[colour]
    row = b"\0" * (1 + (width * bits * channels + 7) // 8)
    packer = zlib.compressobj(9)
    packed = bytearray()
    for start in range(0, height, _BLOCK_ROWS):
        packed += packer.compress(row * min(_BLOCK_ROWS, height - start))
    packed += packer.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", bytes(packed)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# Path on the hostile server -> how the file is made.
BOMBS: dict[str, Callable[[], bytes]] = {
    "png-50000-1bit": lambda: png(50_000, 50_000, 1, 0),
    "png-32000-grey": lambda: png(32_000, 32_000, 8, 0),
    "png-20000-rgba": lambda: png(20_000, 20_000, 8, 6),
}


def bomb(folder: Path, name: str) -> bytes:
    """Return a bomb by name; make it in `folder` if it is not there."""
    path = folder / f"{name}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BOMBS[name]())
    return path.read_bytes()
