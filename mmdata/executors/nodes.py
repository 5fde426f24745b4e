"""What is asked of a Ray cluster and its nodes before they get work, and what a worker there does with a task."""

import importlib.metadata
import os
import platform
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from mmdata.engine.task import Task, TaskReport
from mmdata.engine.worker import run_task
from mmdata.errors import ConfigError, MmdataError, PartitionError, RunError
from mmdata.storage import open_store

FLOOR = (2, 52)
NONCE = "facts/nonce"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
PACKAGES = ("mmdata", "numpy", "pillow", "pyarrow", "torch", "open_clip_torch")  # all have a say in the bytes
_KNOCK_S = 5.0
_TEXT = 1000


@dataclass(frozen=True)
class View:
    """What a node sees: the nonce of the run folder, which versions are installed, whether its cluster asks for a token.

    As what a node must see, `token` says whether it must ask for one.
    """

    nonce: str | None
    versions: dict[str, str | None]
    token: bool


def check_version(version: str) -> None:
    """Refuse a Ray that runs code for anyone who reaches its ports from a browser."""
    if tuple(int(part) for part in version.split(".")[:2]) < FLOOR:
        floor = f"{FLOOR[0]}.{FLOOR[1]}"
        raise ConfigError(f"ray {version} is below {floor} (CVE-2025-62593)", hint=f"pip install 'ray>={floor}'")


def needs_token(address: str, environ: Mapping[str, str]) -> bool:
    """Say whether a cluster must ask for a token; refuse an address that is none, and a cluster that is open to all."""
    host, _, port = address.rpartition(":")
    if address != "auto" and ("/" in host or not host or not port.isdigit()):
        hint = "give HOST:PORT of the head as `ray start --head` prints it, or `auto` on one of its nodes"
        raise ConfigError(f"`{address}` is no address of a Ray cluster", hint=hint)
    if is_loopback(address) or environ.get("MMDATA_RAY_OPEN") == "1":
        return False
    if environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ConfigError(
            f"the Ray cluster at {address} may be reached by others, and whoever reaches it runs code on it",
            hint="start it with RAY_AUTH_MODE=token and set the same, and its RAY_AUTH_TOKEN, here (docs/clusters.md); "
            "or say that its network is closed by MMDATA_RAY_OPEN=1",
        )
    return True


def is_loopback(address: str) -> bool:
    """Say whether an address is on this machine alone."""
    return address.rpartition(":")[0].strip("[]") in _LOOPBACK


def listens(address: str) -> bool:
    """Say whether somebody answers at an address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
    except OSError:
        return False
    return True


def write_nonce(run: str) -> str:
    """Write a word into the run folder that nobody can know who does not read it there."""
    nonce = secrets.token_hex(16)
    open_store(run).put(NONCE, nonce.encode())
    return nonce


def look(run: str) -> View:
    """Return what this node sees."""
    store = open_store(run)
    nonce = store.read(NONCE).decode() if store.exists(NONCE) else None
    return View(nonce, {name: _version(name) for name in PACKAGES}, os.environ.get("RAY_AUTH_MODE") == "token")


def compare(node: str, run: str, mine: View, theirs: View, *, token: bool) -> None:
    """Refuse a node that sees another run folder, holds other packages, or asks nobody for the token it should ask for."""
    if theirs.nonce != mine.nonce:
        raise _unseen(node, run)
    differ = [f"{name} {theirs.versions[name]}, not {mine.versions[name]}" for name in PACKAGES
              if theirs.versions[name] != mine.versions[name]]  # fmt: skip
    if differ:
        raise RunError(f"node {node} has {'; '.join(differ)}", hint="install the same packages on all nodes")
    if token and not theirs.token:
        raise RunError(
            f"node {node} was started without RAY_AUTH_MODE=token: whoever reaches it runs code on it",
            hint="start its Ray again with the token set, or say that its network is closed by MMDATA_RAY_OPEN=1",
        )


def answer(task: Task, must: View) -> TaskReport | MmdataError:
    """Do a task. Errors are values: they keep their type, and a text of bounded length, that way."""
    try:
        check_self(task.job.run, must)
        return run_task(task)
    except MmdataError as error:
        error.message = error.message[:_TEXT]
        return error
    except Exception as error:  # noqa: BLE001 - Ray would send the whole stack
        return PartitionError(f"{task.label}: {brief(error)}")


def brief(error: BaseException) -> str:
    """Return the kind of an error and the ends of its text, which in Ray's errors may be a log."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    text = text if len(text) <= _TEXT else f"{text[: _TEXT // 2]} ... {text[-_TEXT // 2 :]}"
    return f"{type(error).__name__}: {text}"


def check_self(run: str, must: View) -> None:
    """Refuse this worker's own node, once a worker, where it does not see what it must."""
    _check_self(run, must.nonce, tuple(must.versions.items()), must.token)


@cache
def _check_self(run: str, nonce: str | None, versions: tuple[tuple[str, str | None], ...], token: bool) -> None:
    """Refuse this worker's own node, once a worker: it may have joined after all were asked."""
    compare(platform.node(), run, View(nonce, dict(versions), token), look(run), token=token)


def _unseen(node: str, run: str) -> RunError:
    hint = "use a folder that all nodes share under one path, or an object store"
    return RunError(f"node {node} does not see the run folder {run}", hint=hint)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
