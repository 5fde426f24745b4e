"""Deny lists: urls, domains, hashes and looks that must not be stored; asked before anything is written.

Every list is a text file, one entry a line; `#` begins a comment. What a list holds is never logged: a row that falls under
one ends as `denylisted`, with the kind of list as its rule.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field

from mmdata.config import Model
from mmdata.errors import ConfigError
from mmdata.storage import digest_file


class Deny(Model):
    """Files that list what must not be stored.

    urls     whole urls          domains  names; their sub-domains are meant too
    sha256   of the bytes as served, in hex
    phash    64-bit perceptual hashes in hex, of pictures; those within `radius` bits are meant too
    """

    urls: str | None = None
    domains: str | None = None
    sha256: str | None = None
    phash: str | None = None
    radius: Annotated[int, Field(ge=0, le=16)] = 6

    def digests(self) -> tuple[str, ...]:
        """Return the SHA-256 of every list."""
        return tuple(digest_file(path) for path in self._files())

    def open(self) -> "DenyLists":
        """Read the lists; raise ConfigError for a file or a line that is wrong."""
        return _read(self.model_dump_json(), self.digests())

    def _files(self) -> list[Path]:
        return [list_file("deny list", name) for name in (self.urls, self.domains, self.sha256, self.phash) if name is not None]


def list_file(what: str, name: str) -> Path:
    """Return the path of a list that is there."""
    if not (path := Path(name)).is_file():
        raise ConfigError(f"{what} {path}: no such file", hint="paths are relative to where the command runs")
    return path


@dataclass(frozen=True)
class DenyLists:
    """Deny lists in memory."""

    urls: frozenset[str]
    domains: frozenset[str]
    sha256: frozenset[str]
    phash_N: np.ndarray
    radius: int

    def of_url(self, url: str) -> str | None:
        """Return the kind of list that a url falls under, or null."""
        if url in self.urls:
            return "deny list of urls"
        return "deny list of domains" if self.lists_host(host_of(url)) else None

    def lists_host(self, host: str) -> bool:
        """Say whether a host is of a listed domain, or of one below it."""
        labels = host.split(".")
        return any(".".join(labels[first:]) in self.domains for first in range(len(labels)))

    def of_bytes(self, sha256: str) -> str | None:
        """Return the kind of list that bytes fall under by their SHA-256, or null."""
        return "deny list of SHA-256" if sha256 in self.sha256 else None

    def of_look(self, phash: int) -> str | None:
        """Return the kind of list that an image falls under by its perceptual hash, or null."""
        differing = (self.phash_N ^ np.uint64(phash)).view(np.uint8).reshape(-1, 8)
        distance = np.unpackbits(differing, axis=1).sum(axis=1)
        return "deny list of perceptual hashes" if bool(np.any(distance <= self.radius)) else None


@lru_cache(maxsize=4)
def _read(fields: str, _digests: tuple[str, ...]) -> DenyLists:
    deny = Deny.model_validate_json(fields)
    hashes = [_hex(deny.sha256, line, entry, 64) for line, entry in entries_of(deny.sha256)]
    looks = [int(_hex(deny.phash, line, entry, 16), 16) for line, entry in entries_of(deny.phash)]
    return DenyLists(
        frozenset(entry for _, entry in entries_of(deny.urls)),
        frozenset(entry.lower().strip(".") for _, entry in entries_of(deny.domains)),
        frozenset(hashes),
        np.array(looks, dtype=np.uint64),
        deny.radius,
    )


def entries_of(path: str | None) -> list[tuple[int, str]]:
    """Return the entries of a list with the numbers of their lines; none without a list."""
    if path is None:
        return []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    entries = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return [(number, entry) for number, entry in entries if entry and not entry.startswith("#")]


def _hex(path: str | None, line: int, entry: str, digits: int) -> str:
    if len(entry) != digits or not all(char in "0123456789abcdefABCDEF" for char in entry):
        raise ConfigError(f"{path}:{line}: not {digits} hex digits", hint="one hash a line, `#` begins a comment")
    return entry.lower()


def host_of(url: str) -> str:
    """Return the host of a url in lower case, empty where it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""
