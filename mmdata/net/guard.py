"""Which addresses may be dialled. The guard stands where sockets are created, so no spelling of a host gets around it.

Denied by default: everything that is not the public internet (IANA special-purpose registries), also when it is wrapped
in an IPv6 form, and every port but 80 and 443. Allowances are an argument, never part of a plan, and are recorded.
"""

import socket
from dataclasses import dataclass
from fnmatch import fnmatch
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from mmdata.errors import ConfigError

PORTS = (80, 443)
_DENIED = tuple(ip_network(text) for text in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
    "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16",
    "3fff::/20", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
))  # fmt: skip
_GLOBAL_UNICAST = ip_network("2000::/3")
# Where clouds and clusters keep credentials; `internal` is reserved for private networks, so no public site has it.
_PRIVATE_NAMES = ("metadata", "instance-data", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
_PRIVATE_SUFFIXES = (".internal", ".cluster.local")
_ISATAP = (0x5EFE, 0x2005EFE)  # the middle of an interface id that holds an IPv4 address


class Blocked(Exception):
    """A forbidden connection; `outcome` says whether by address or by port."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


@dataclass(frozen=True)
class Allowance:
    """`ADDRESS:PORT` may be dialled; with a name in front (`NAME=ADDRESS:PORT`, `*` allowed) NAME is dialled there."""

    address: str
    port: int
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Allowance":
        """Read `ADDRESS:PORT` or `NAME=ADDRESS:PORT`."""
        name, _, place = text.rpartition("=")
        address, _, port = place.rpartition(":")
        try:
            return cls(str(ip_address(address.strip("[]"))), int(port), name.lower() or None)
        except ValueError:
            raise ConfigError(
                f"`--allow {text}`: not an allowance",
                hint="write ADDRESS:PORT or NAME=ADDRESS:PORT, e.g. 127.0.0.1:8080",
            ) from None


class Guard:
    """Checks every address at the moment it is dialled."""

    def __init__(self, allow: tuple[str, ...] = ()) -> None:
        self.allowances = tuple(Allowance.parse(text) for text in allow)
        self._places = {(a.address, a.port) for a in self.allowances}
        self._ports = {a.port for a in self.allowances}
        self._names = [(a.name, (a.address, a.port)) for a in self.allowances if a.name]

    def check(self, address: str, port: int) -> None:
        """Raise Blocked unless this address and port may be dialled."""
        if (address, port) in self._places:
            return
        if not is_public(address):
            raise Blocked("blocked_address", f"{address} is not a public address")
        if port not in PORTS:
            raise Blocked("blocked_port", f"port {port} is not 80 or 443")

    def check_name(self, name: str, port: int) -> None:
        """Raise Blocked for a name or port that is refused whatever its address: names of private networks' services."""
        if name in _PRIVATE_NAMES or name.endswith(_PRIVATE_SUFFIXES):
            raise Blocked("blocked_address", f"{name} names a service of a private network")
        if port not in PORTS and port not in self._ports:
            raise Blocked("blocked_port", f"port {port} is not 80 or 443")

    def socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """Create the socket for one resolved address, or refuse."""
        family, kind, proto, _, sockaddr = info
        self.check(str(sockaddr[0]).split("%")[0], int(str(sockaddr[1])))
        return socket.socket(family, kind, proto)

    def place_of(self, name: str) -> tuple[str, int] | None:
        """Return where a name is dialled by an allowance, if one names it."""
        name = name.lower().rstrip(".")
        return next((place for pattern, place in self._names if fnmatch(name, pattern)), None)


def is_public(address: str) -> bool:
    """Say whether an address is on the public internet, by every IPv4 address that it wraps too."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if any(ip in network for network in _DENIED if network.version == ip.version):
        return False
    return isinstance(ip, IPv4Address) or (ip in _GLOBAL_UNICAST and _public_isatap(ip))


def _public_isatap(ip: IPv6Address) -> bool:
    middle = (int(ip) >> 32) & 0xFFFFFFFF
    return middle not in _ISATAP or is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
