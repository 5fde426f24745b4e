"""Colour profiles built from their numbers, and the distance between colours."""

import struct

import numpy as np

# Display P3, adapted to D50 as profiles have it: the columns are red, green, blue.
P3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
GAMMA = 2.2


def rgb_profile(primaries: np.ndarray = P3) -> bytes:
    """A profile of three primaries and a plain gamma of 2.2."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    columns = [b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in primaries[:, i]) for i in range(3)]
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)) | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def cmyk_profile() -> bytes:
    """A profile of four inks whose overprints are the products of their colours."""
    corners = []
    for bits in range(16):
        inks = np.array([(bits >> shift) & 1 for shift in (3, 2, 1, 0)], float)
        colour = np.array([0.0, 0.62, 0.9]) ** inks[0] * np.array([0.85, 0.0, 0.5]) ** inks[1]
        colour = colour * np.array([1.0, 0.93, 0.05]) ** inks[2] * 0.1 ** inks[3]
        light, a, b = lab(np.rint(colour * 255).astype(np.uint8))
        corners += [round(light * 2.55), round(a + 128), round(b + 128)]
    ramp = bytes(range(256))
    matrix = b"".join(_fixed(value) for value in np.eye(3).ravel())
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(corners) + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (D50) of (..., 3) uint8 sRGB."""
    part = rgb / 255
    linear = np.where(part > 0.04045, ((part + 0.055) / 1.055) ** 2.4, part / 12.92)
    xyz = linear @ SRGB.T / np.array([0.9642, 1.0, 0.8249])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean dE (1976) of two pictures."""
    return float(np.linalg.norm(lab(first) - lab(second), axis=-1).mean())


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    words = b"made for a test\0"
    text = b"desc" + bytes(4) + struct.pack(">I", len(words)) + words + bytes(78)
    white = b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in (0.9642, 1.0, 0.8249))
    tags = {b"desc": text, b"wtpt": white, b"cprt": b"text" + bytes(4) + b"none\0"} | tags
    place, table, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for name, given in tags.items():
        body = given + bytes(-len(given) % 4)
        table += name + struct.pack(">II", place + len(bodies), len(body))
        bodies += body
    header = bytearray(128)
    header[0:4] = struct.pack(">I", place + len(bodies))
    header[8:12] = b"\2\x40\0\0"
    header[12:24] = kind + space + connection
    header[36:40] = b"acsp"
    header[68:80] = white[8:]
    return bytes(header) + struct.pack(">I", len(tags)) + table + bodies


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
