"""What comes of a fetch: a response with its body, or the outcome that the row ends with."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fetched:
    """A response with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    url: str = ""


@dataclass(frozen=True)
class Failure:
    """A fetch that ended without media."""

    outcome: str
    detail: str
    url: str = ""
