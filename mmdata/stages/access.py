"""How requests leave where that is nobody else's business: a proxy and headers by host, from a file that stays where it is.

    proxy: http://user:password@proxy.example:3128
    headers:
      images.example: {Authorization: Bearer ...}

A plan names the file; what is in it enters no key, no run folder, no log and no message.
"""

from pathlib import Path

from pydantic import Field

from mmdata.config import Model, build, read_yaml
from mmdata.errors import ConfigError


class Access(Model):
    """A proxy that is told to dial for us, and headers that are sent to one host each."""

    proxy: str = ""
    headers: dict[str, dict[str, str]] = Field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Access({'proxy, ' if self.proxy else ''}headers for {len(self.headers)} hosts)"


def read_access(path: str) -> Access:
    """Read an access file; raise ConfigError for one that is missing or wrong."""
    if not path:
        return Access()
    if not Path(path).is_file():
        raise ConfigError(f"access file {path}: no such file", hint="it must lie at this path on every machine that fetches")
    document = read_yaml(Path(path))
    return build(Access, document, (), document.value)
