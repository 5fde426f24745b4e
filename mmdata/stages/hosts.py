"""Hosts and domains of many urls at once."""

from collections.abc import Callable
from ipaddress import ip_address

import pyarrow as pa

from mmdata.stages.deny import host_of

# Of these the host can be cut out; every other url is taken apart with care.
_PLAIN = r"^[A-Za-z][A-Za-z0-9+.-]*://([A-Za-z0-9._-]+)(?::[0-9]*)?(?:[/?#]|$)"
_SECOND_LEVEL = {"ac", "co", "com", "edu", "go", "gob", "gov", "ne", "net", "nom", "or", "org"}


def hosts_of(urls: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return the host of each url in lower case, as `deny` reads it; null without a url, empty for one without a host."""
    import polars as pl

    series = pl.Series(pl.from_arrow(urls.combine_chunks()))
    hosts = series.str.extract(_PLAIN, 1).str.to_lowercase().str.strip_chars_end(".")
    odd = series.is_not_null() & hosts.is_null()
    if odd.any():
        careful = pl.Series([host_of(url) for url in series.filter(odd)], dtype=pl.String)
        hosts = hosts.scatter(odd.arg_true(), careful)
    return hosts.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string()).dictionary_encode()


def each_host(hosts: pa.DictionaryArray, function: Callable[[str], str | None]) -> pa.Array:
    """Return what a function says of each row's host, asked once of every host; null where there is no host."""
    found = [function(host) if host else None for host in hosts.dictionary.to_pylist()]
    return pa.array(found, pa.string()).take(hosts.indices)


def domain_of(host: str) -> str:
    """Return what people register of a host: its last two labels, three below such names as `co.uk`; an address is itself.

    It is a rule of thumb and not the list of public suffixes: of `a.github.io` and `b.github.io` it makes one domain.
    """
    try:
        return str(ip_address(host))
    except ValueError:
        labels = host.split(".")
        third = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL
        return ".".join(labels[-3 if third else -2 :])
