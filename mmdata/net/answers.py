"""What comes of a fetch: a response with its body, or the outcome that the row ends with."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fetched:
    """A response with its whole body.

    headers    names in lower case; several lines of one name joined by a comma
    url        the url that gave it, after redirects
    rule       which rule of manners allowed it, empty where none was asked
    address    the address that was dialled
    hops       the urls that redirected here, in order
    elapsed_s  seconds of the last request, from name resolution to the last byte
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    url: str = ""
    rule: str = ""
    address: str = ""
    hops: tuple[str, ...] = ()
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A fetch that ended without media; the fields that `Fetched` has too mean the same."""

    outcome: str
    detail: str
    url: str = ""
    rule: str = ""
    address: str = ""
    hops: tuple[str, ...] = ()
    elapsed_s: float = 0.0
