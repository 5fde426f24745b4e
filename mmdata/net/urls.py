"""What a url is to us: http or https, a host, an origin. Everything else is refused before anybody is asked."""

import re
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from mmdata.net.answers import Failure

REDIRECTS = (301, 302, 303, 307, 308)
_MAX_LOCATION = 8192
# What nearly all urls look like; these need no further parsing.
_PLAIN = re.compile(r"(https?://([a-z0-9](?:[a-z0-9-]|\.(?=[a-z0-9]))*))(?=[/?#])")


class Target(NamedTuple):
    """A url that may be asked for.

    url     as given
    host    the normalised name: lower case, IDNA, no trailing dot; pacing goes by it
    origin  `scheme://host[:port]`; robots.txt and its like go by it
    """

    url: str
    host: str
    origin: str


def parse_url(url: str) -> Target | Failure:
    """Return what a url points at; `blocked_scheme` or `bad_row` if nothing that is fetched."""
    plain = _PLAIN.match(url)
    if plain:
        return Target(url, plain[2].rstrip("."), plain[1])
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return Failure("bad_row", f"not a url: {error}", url)
    if parts.scheme not in ("http", "https"):
        return Failure("blocked_scheme", f"scheme `{parts.scheme}` is not http or https", url)
    if not host:
        return Failure("bad_row", "a url without a host", url)
    name = _normalised(host)
    shown = f"[{name}]" if ":" in name else name
    return Target(url, name, f"{parts.scheme}://{shown}" + (f":{port}" if port else ""))


def redirect_of(url: str, location: str) -> str | Failure:
    """Return where a redirect leads, by RFC 3986; a Failure when it leads nowhere, or from https to http."""
    if not location or len(location) > _MAX_LOCATION or any(ord(char) < 33 for char in location):
        return Failure("bad_response", "a redirect without a usable Location", url)
    try:
        target = urljoin(url, location)
    except ValueError:
        return Failure("bad_response", "a redirect without a usable Location", url)
    if url.startswith("https:") and target.startswith("http:"):
        return Failure("bad_response", "a redirect from https to http", url)
    return target


def _normalised(host: str) -> str:
    name = host.rstrip(".").lower()
    if name.isascii():
        return name
    try:
        return name.encode("idna").decode("ascii").lower().rstrip(".")
    except UnicodeError:
        return name
