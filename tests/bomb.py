"""What must never be unpickled: it leaves a marker where it is."""

from pathlib import Path


class Bomb:
    """Writes to `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path(self.marker).write_text, ("boom",)
