"""The command line in processes that need not load it: one that has loaded it forks a child for each command.

A command on 24 rows spends more on its imports than on the rows, and tests of kills start hundreds of commands. A child that
was forked is a process as any other: killed, stopped and waited for by its number, in a session of its own.

One thing all children share that processes otherwise do not: the seed of Python's hashes. So what they are compared with
is made by a process that was started (`Site.run(fresh=True)`).
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MAIN = "from tests.fire.forks import main; main()"
# What `mmdata run` loads by and by, on a disk and on an object store.
LOADED = (
    "mmdata.cli.main", "mmdata.cli.run", "mmdata.engine", "mmdata.executors", "mmdata.plan", "mmdata.report.table",
    "mmdata.stages.download_job", "mmdata.net.client", "mmdata.net.pool", "s3fs",
)  # fmt: skip
_REQUEST_BYTES = 1 << 17
_lock = threading.Lock()
_nurseries: dict[str, socket.socket] = {}


class Forked:
    """A command in a child of the nursery; it answers as `subprocess.Popen` does, as far as tests ask.

    also  a module that this nursery, one of its own, has loaded too
    """

    def __init__(self, arguments: list[str], cwd: Path, env: dict[str, str], also: str = "") -> None:
        self.args = arguments
        self.returncode: int | None = None
        (out, out_end), (err, err_end), (status, status_end) = os.pipe(), os.pipe(), os.pipe()
        ends = [out_end, err_end, status_end]
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": env}).encode()
        socket.send_fds(_nursery(also), [request], ends)
        for end in ends:
            os.close(end)
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())
        self._texts = [_Text(out), _Text(err)]

    def poll(self) -> int | None:
        """Return the exit code, or null while the command runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float = 60.0) -> tuple[str, str]:
        """Wait until the command, and all that hold its output, have ended; return what they said."""
        end = time.monotonic() + timeout
        for text in self._texts:
            text.join(max(0.0, end - time.monotonic()))
        while any(text.is_alive() for text in self._texts) or self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return self._texts[0].found, self._texts[1].found

    def kill(self) -> None:
        """End the command, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class _Text(threading.Thread):
    """Reads what a command says until nobody can say more."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.found, self._fd = "", fd
        self.start()

    def run(self) -> None:
        with os.fdopen(self._fd, encoding="utf-8", errors="replace") as file:
            self.found = file.read()


def _nursery(also: str) -> socket.socket:
    """Return the line to a nursery; it is started when it is first asked for, and ends with this process."""
    with _lock:
        if also not in _nurseries:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), *([also] if also else [])], pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            theirs.close()
            _nurseries[also] = ours
        return _nurseries[also]


def main() -> None:
    """Be a nursery, and in each of its children a command."""
    for name in (*LOADED, *sys.argv[2:]):
        import_module(name)
    _nurse(int(sys.argv[1]))
    from mmdata.cli.main import main as command

    command()


def _nurse(fd: int) -> None:
    """Fork a child for each request until nobody can ask any more; return in each child."""
    assert threading.active_count() == 1, "a process with threads cannot be forked safely"
    gc.freeze()  # collections in children then copy no pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=fd) as line:
        while True:
            request, ends, _, _ = socket.recv_fds(line, _REQUEST_BYTES, 3)
            if not request:
                os._exit(0)
            if os.fork() == 0:
                break
            for end in ends:
                os.close(end)
    _keep(*ends)
    _become(json.loads(request))


def _keep(out: int, err: int, status: int) -> None:
    """Fork the command, in which this returns once it has told its number; tell its exit code in the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.write(status, b"%d\n" % os.getpid())
        for fd in (out, err, status):
            os.close(fd)
        return
    os.close(out)
    os.close(err)
    _, code = os.waitpid(child, 0)
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(code))
    os._exit(0)


def _become(request: dict[str, object]) -> None:
    """Stand where the command is to stand."""
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    sys.argv = ["-c", *request["arguments"]]  # type: ignore[misc]
