"""What a url is to a row: a target, or the outcome that the row ends with before anybody is asked."""

from urllib.parse import urljoin

from mmdata.net.answers import Failure
from mmdata.net.target import BadScheme, Target

REDIRECTS = (301, 302, 303, 307, 308)
_MAX_LOCATION = 8192


def parse_url(url: str) -> Target | Failure:
    """Return what a url points at; `blocked_scheme` or `bad_row` if nothing that is fetched."""
    try:
        return Target.of(url)
    except BadScheme as error:
        return Failure("blocked_scheme", f"{error}", url)
    except ValueError as error:
        return Failure("bad_row", f"not a url: {error}"[:300], url)


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
