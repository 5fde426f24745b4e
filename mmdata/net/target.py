"""What a url asks for: the host that is paced and dialled, the origin whose robots.txt counts, and the bytes of the request.

All of them come from one reading of the url, so that nobody is asked by one name and looked up by another. A user and
password in a url are left out, as is the fragment. A redirect makes a new target, so what belongs to one host is never sent
to another.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import SplitResult, quote, urlsplit

import idna

from mmdata.net.dns import literal

MOST_URL = 16 << 10
Key = tuple[str, str, int]
_PORTS = {"http": 80, "https": 443}
_MOST_NAME = 255
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?\.?")
# What RFC 3986 allows in a path and a query, `%` included: what is escaped already stays so.
_SAFE = "!#$%&'()*+,/:;=?@[]~"
_PLAIN = re.compile(r"[\w.!#$%&'()*+,/:;=?@\[\]~-]*", re.ASCII)


class BadScheme(ValueError):
    """A url that is neither http nor https."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a url leads.

    url     as given
    host    a name in lower case and ASCII, without a last dot, or an address
    path    path and query as they are sent
    """

    url: str
    scheme: str
    host: str
    port: int
    path: str
    is_address: bool

    @classmethod
    def of(cls, url: str) -> "Target":
        """Read a url; raise BadScheme or another ValueError for one that leads nowhere."""
        return _read(url)

    @property
    def key(self) -> Key:
        """What two targets share when one connection serves both."""
        return self.scheme, self.host, self.port

    @property
    def origin(self) -> str:
        """What robots.txt and its like go by."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as the `Host` header names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def request(self, headers: bytes, *, absolute: bool = False) -> bytes:
        """Write the request.

        headers   its header lines but for `Host`
        absolute  name the host in the first line, as a proxy wants it
        """
        where = f"{self.scheme}://{self.authority}{self.path}" if absolute else self.path
        return b"".join((f"GET {where} HTTP/1.1\r\nHost: {self.authority}\r\n".encode("ascii"), headers, b"\r\n"))

    def tunnel(self, headers: bytes) -> bytes:
        """Write the request that asks a proxy for a way to the target; `headers` are for the proxy."""
        where = f"{self.authority}:{self.port}" if self.port == _PORTS[self.scheme] else self.authority
        return b"".join((f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n".encode("ascii"), headers, b"\r\n"))


@lru_cache(maxsize=1024)  # a url is read where it is judged, and again where it is sent
def _read(url: str) -> Target:
    if len(url) > MOST_URL:
        raise ValueError(f"a url of more than {MOST_URL} characters")
    scheme, netloc, path, query, _ = urlsplit(url)
    host, port, is_address = _place(scheme, netloc)
    path = f"{path or '/'}?{query}" if query else path or "/"
    return Target(url, scheme, host, port, path if _PLAIN.fullmatch(path) else quote(path, safe=_SAFE), is_address)


@lru_cache(maxsize=4096)
def _place(scheme: str, netloc: str) -> tuple[str, int, bool]:
    """Return the host as it is dialled, the port, and whether the host is an address."""
    if scheme not in _PORTS:
        raise BadScheme(f"scheme `{scheme}` is not http or https")
    parts = SplitResult(scheme, netloc, "", "", "")
    port = parts.port if parts.port is not None else _PORTS[scheme]
    text = parts.hostname or ""
    name = text if text.isascii() else _ascii(text[:_MOST_NAME])
    if not name:
        raise ValueError("a url without a host")
    address = literal(name) if "%" not in name else None
    if address is not None:
        return address, port, True
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"`{text[:80]}` is not a host name")
    return name.rstrip("."), port, False


def _ascii(text: str) -> str:
    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except idna.IDNAError:
        # The older rules, which know emoji; digits in other scripts become plain ones here too.
        return text.encode("idna").decode("ascii").lower()
