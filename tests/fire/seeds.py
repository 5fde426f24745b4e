"""How often a fault is tried: a few times in `make test`, all seeds in `make gauntlet`."""

import os

GAUNTLET = bool(os.environ.get("MMDATA_GAUNTLET"))


def seeds(few: int, many: int) -> range:
    """Return the seeds of a fault for this call of the tests."""
    return range(many if GAUNTLET else few)
