"""What a worker of a cluster does that is one of several ranks which work together: they start together, and end together."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmdata.errors import MmdataError, RunError
from mmdata.executors.nodes import View, brief, check_self


@dataclass(frozen=True)
class Work:
    """What every rank is to do: call a function of a module, with arguments that say where things lie.

    folder, view  the folder that each must see, and what it must see there
    """

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    folder: str
    view: View


def free_port() -> int:
    """Return a port that nobody listens on here."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, ranks: int, host: str, port: int) -> dict[str, str]:
    """Return what torchrun would set for a rank that sees no GPU but its own."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "MASTER_ADDR": host, "MASTER_PORT": str(port),
    }  # fmt: skip


def serve(work: Work, environ: Mapping[str, str]) -> Any:  # noqa: ANN401 - what the work returns
    """Do a rank's work. Errors are values: they keep their type, and a text of bounded length, that way."""
    os.environ.update(environ)
    try:
        check_self(work.folder, work.view)
        return work.call(*work.arguments)
    except MmdataError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the cluster would send the whole stack
        return RunError(f"rank {environ['RANK']}: {brief(error)}")
