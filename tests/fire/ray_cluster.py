"""A Ray cluster of several nodes on one machine, and stages that do to its workers what a test asks.

Every node is a `ray start` of its own with a working folder and a temporary folder of its own, on loopback, with a token.
What is started is ended by process number, and every wait has an end.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import pyarrow as pa

from mmdata.stages.verbs import Batch, Map, MapFn, WorkerContext

ROOT = Path(__file__).parents[2]
START_S = 90.0
GONE_S = 30.0
# On one machine Ray puts the outer address in place of a loopback one, and listens on every interface then.
_RAY = "from ray._private import services; services.resolve_ip_for_localhost = str; from ray.scripts.scripts import main; main()"
_POINTS = "[mmdata.stages]\nnap = tests.fire.ray_cluster:Nap\nheld = tests.fire.ray_cluster:Held\n"


class Nap(Map):
    """Write `napped`, the length of the text. A test's word in the folder `FIRE_WORDS` comes first.

    pause  so many seconds a batch
    hang, stop, kill  what befalls the worker that takes the word away; it leaves its number in `WORD.pid`
    """

    name: ClassVar[str] = "nap"

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (pa.field(f"{self.name}ped", pa.int64()),)

    def open(self, ctx: WorkerContext) -> MapFn:
        return self._work

    def _work(self, batch: Batch) -> pa.Table:
        words = Path(os.environ["FIRE_WORDS"])
        if (words / "pause").exists():
            time.sleep(float((words / "pause").read_text()))
        for word in ("hang", "stop", "kill"):
            if _take(words, word):
                signals = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}
                if word in signals:
                    os.kill(os.getpid(), signals[word])
                time.sleep(3600)
        lengths = [len(text or "") for text in batch.table.column("text").to_pylist()]
        return pa.table({f"{self.name}ped": pa.array(lengths, pa.int64())})


class Held(Nap):
    """The same by a stage that holds a model, so that it works in an actor."""

    name: ClassVar[str] = "held"

    def weights(self) -> tuple[str, ...]:
        return ("0" * 64,)


def _take(words: Path, word: str) -> bool:
    """Say whether this is the process that takes a word away."""
    try:
        (words / word).unlink()
    except FileNotFoundError:
        return False
    (words / f"{word}.pid.tmp").write_text(str(os.getpid()))
    (words / f"{word}.pid.tmp").rename(words / f"{word}.pid")
    return True


def wait_for(what: Callable[[], object], seconds: float, name: str) -> None:
    """Wait until something holds, or fail."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds:g} s: {name}"
        time.sleep(0.05)


def session(leader: int) -> set[int]:
    """Return all processes that came of one that was started in a session of its own, and have not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX" and int(fields[3]) == leader:
                found.add(int(entry.name))
    return found


def end(leader: int) -> None:
    """Kill all that came of a process, and wait until they are gone."""
    for pid in session(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not session(leader), GONE_S, "the processes are gone")


def listening(pids: set[int]) -> set[str]:
    """Return the addresses, as HOST:PORT, that some processes listen on."""
    found = {}
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                number, port = fields[1].split(":")
                words = b"".join(bytes.fromhex(number[i : i + 8])[::-1] for i in range(0, len(number), 8))
                host = ip_address(words)
                host = getattr(host, "ipv4_mapped", None) or host
                found[f"socket:[{fields[9]}]"] = f"{host}:{int(port, 16)}"
    held = set()
    for pid in pids:
        with suppress(FileNotFoundError):  # it has just ended
            held |= {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    return {address for socket_name, address in found.items() if socket_name in held}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(eq=False)
class Node:
    """One `ray start`, and all that came of it."""

    home: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self.home / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def started(self) -> bool:
        """Whether it is up; one that ended is an error."""
        assert self.process.poll() is None, self.log
        return "Ray runtime started" in self.log

    def server(self, name: str) -> int:
        """Return the process of a server: `raylet` or `gcs_server`."""
        found = [pid for pid in session(self.process.pid) if f"/{name}\0" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(found) == 1, (name, found)
        return found[0]

    def kill(self) -> None:
        """End it and all that came of it, at once."""
        end(self.process.pid)
        self.process.wait(GONE_S)


class RayCluster:
    """A head, and as many nodes of one CPU as are added."""

    def __init__(self, folder: Path, *, head_cpus: int = 0, options: tuple[str, ...] = (), hide: Path | None = None) -> None:
        self.folder, self.options, self.head_cpus, self.hide = folder, options, head_cpus, hide
        self.words = folder / "words"
        self.address = f"127.0.0.1:{free_port()}"
        self.nodes: list[Node] = []
        self.scratch = Path(tempfile.mkdtemp(prefix="mmr-", dir="/tmp"))
        self.environment = environment(folder) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def __enter__(self) -> Self:
        port = self.address.rpartition(":")[2]
        head = ("--head", "--port", port, "--num-cpus", str(self.head_cpus), "--include-dashboard", "false", "--no-monitor")
        self.head = self._start("head", head, hide=self.hide)
        wait_for(lambda: self.head.started, START_S, "the head is up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in (*self.nodes, self.head):
            node.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def add(self, *names: str, hide: Path | None = None, options: tuple[str, ...] = ()) -> list[Node]:
        """Start nodes and wait until they are up; one that hides a folder sees an empty one of 1 MiB there."""
        where = ("--address", self.address, "--num-cpus", "1", *options)
        found = [self._start(name, where, hide=hide) for name in names]
        self.nodes += found
        wait_for(lambda: all(node.started for node in found), START_S, "the nodes are up")
        return found

    def say(self, word: str, text: str = "") -> None:
        """Give the workers a word."""
        (self.words / f"{word}.pid").unlink(missing_ok=True)
        (self.words / word).write_text(text)

    def heard(self, word: str) -> int:
        """Wait until a worker took a word away; return its process."""
        wait_for((self.words / f"{word}.pid").exists, START_S, f"a worker hears `{word}`")
        return int((self.words / f"{word}.pid").read_text())

    def hush(self) -> None:
        """Take all words back."""
        for path in self.words.iterdir():
            path.unlink()

    def _start(self, name: str, arguments: tuple[str, ...], *, hide: Path | None = None) -> Node:
        home = self.folder / name
        home.mkdir()
        command = [
            sys.executable, "-c", _RAY, "start", "--block", "--node-ip-address", "127.0.0.1", "--disable-usage-stats",
            "--temp-dir", str(self.scratch / name), "--min-worker-port", "0", "--max-worker-port", "0",
            "--include-log-monitor", "false", "--object-store-memory", str(80 << 20), *self.options, *arguments,
        ]  # fmt: skip
        if hide is not None:
            command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(hide), *command]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=home, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return Node(home, process)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of drivers and nodes: this package, the stages above, the words, and no Ray of anyone else."""
    points = folder / "plugin/fire_ray-0.1.dist-info"
    points.mkdir(parents=True, exist_ok=True)
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: fire-ray\nVersion: 0.1\n")
    (points / "entry_points.txt").write_text(_POINTS)
    (folder / "words").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MMDATA_", "FAILPOINT"))}
    path = os.pathsep.join(map(str, (folder / "plugin", ROOT, ROOT / "tests/fire/plugin")))
    return kept | {
        "PYTHONPATH": path, "FIRE_WORDS": str(folder / "words"), "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
