"""The oldest versions that may touch untrusted bytes; older ones are refused when a run starts.

Read from the packages' metadata, so nothing is imported. Sources of the floors: the packages' own security notices. Python
itself has one for those who extract tars; nothing here does.
"""

from importlib.metadata import PackageNotFoundError, version

from mmdata.errors import ConfigError

FLOORS = {
    "pillow": ((13, 0, 0), "a heap overflow in its JPEG decoder, CVE-2026-112403"),
    "aiohttp": ((3, 14, 4), "quadratic time on empty gzip members, CVE-2026-128131"),
    "urllib3": ((2, 6, 3), "bombs in redirects, CVE-2026-21441"),
    "ray": ((2, 52, 0), "code of anyone who reaches its ports, CVE-2025-62593"),
    "torch": ((2, 10, 0), "code from checkpoints, CVE-2026-24747"),
    "pyarrow": ((14, 0, 1), "code from Parquet and IPC files, CVE-2023-47248"),
    "av": ((18, 1, 0), "a crash on truncated video"),
}


def check_floors(floors: dict[str, tuple[tuple[int, ...], str]] | None = None) -> None:
    """Raise ConfigError for every installed package that is below its floor."""
    found = []
    for name, (floor, why) in (FLOORS if floors is None else floors).items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if _numbers(installed) < floor:
            found.append(f"{name} {installed} is below {'.'.join(map(str, floor))}: {why}")
    if found:
        names = " ".join(line.split()[0] for line in found)
        raise ConfigError("; ".join(found), hint=f"pip install --upgrade {names}")


def _numbers(text: str) -> tuple[int, ...]:
    digits = []
    for part in text.split("+", maxsplit=1)[0].split("."):
        lead = part[: len(part) - len(part.lstrip("0123456789"))]
        if not lead:
            break
        digits.append(int(lead))
    return tuple(digits)
