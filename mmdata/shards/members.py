"""Cut the tar bytes of one sample into its members."""

import re

from mmdata.errors import RunError

TAR_BLOCK = 512

_OCTAL = re.compile(rb"[0-7]{11}")


def members(data: bytes) -> list[tuple[str, bytes]]:
    """Cut the tar bytes of one sample into members: suffix after the first dot, data."""
    found, at = [], 0
    while at < len(data):
        name, size = data[at : at + 100].rstrip(b"\0").decode(errors="replace"), data[at + 124 : at + 135]
        if not _OCTAL.fullmatch(size):
            raise RunError(f"holds no tar header after {at} bytes")
        end = at + TAR_BLOCK + int(size, 8)
        found.append((name.partition(".")[2], data[at + TAR_BLOCK : end]))
        at = -(-end // TAR_BLOCK) * TAR_BLOCK
    return found
