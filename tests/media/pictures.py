"""Small real pictures for the tests of media, and files that are none."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture with smooth parts, edges and grain, (height, width, 3) uint8; never the same when turned."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(20, 235, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    y, x = np.mgrid[0:height, 0:width]
    smooth[(x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2] = (230, 60, 40)
    return np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)


def turned(picture: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as a file holds them whose EXIF orientation makes them `picture`."""
    across = picture.transpose(1, 0, 2)
    return np.ascontiguousarray({
        1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1], 5: across, 6: np.rot90(picture, 1),
        7: across[::-1, ::-1], 8: np.rot90(picture, -1),
    }[orientation])  # fmt: skip


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG that says what it is told to."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(side: int, depth: int, colour: int) -> bytes:
    """A PNG of side x side zeros, packed; the first 64 MB of them, since nobody may come that far."""
    channels = {0: 1, 6: 4}[colour]
    row, packer = bytes(1 + (side * depth * channels + 7) // 8), zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(min(side, (64 << 20) // len(row))))
    return png(side, side, depth, colour, body + packer.flush())


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode a Pillow image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
