"""Digests: SHA-256, in hex, of bytes, of JSON and of files."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:  # noqa: ANN401 - anything that JSON can hold
    """Return the SHA-256 of a value in canonical JSON: sorted keys, no spaces."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
