"""Which machine this is and which process, so that what a dead process left can be told from what a live one holds."""

import platform
from contextlib import suppress
from pathlib import Path


def host() -> str:
    """Name this machine, this boot of it and this process's view of it, so that a process number means something."""
    parts = [platform.node()]
    with suppress(OSError):  # Linux only; a container that shares the machine's name has process numbers of its own
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


def started(pid: int) -> str:
    """Return when a process started, in the kernel's count; empty when there is none (numbers are used again)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
