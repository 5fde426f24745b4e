"""A run's state in Prometheus' text format, and a server of it while the run runs.

The server answers `GET /metrics` and nothing else, and is reachable from this machine alone unless another address is asked
for: who may read it may read the plan's name, its stages and its counts.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socket import AF_INET, AF_INET6
from socketserver import ThreadingTCPServer
from typing import Any, get_args

from mmdata.engine.facts import Facts, State
from mmdata.errors import ConfigError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CLIENT_S = 5.0

Samples = list[tuple[dict[str, str], float | None]]

# name, type, help, key in the stage's facts
_STAGE_METRICS = (
    ("stage_rows_total", "counter", "Rows that came to the stage, in finished partitions.", "rows"),
    ("stage_rows_computed_total", "counter", "Rows that this run computed.", "computed"),
    ("stage_rows_reused_total", "counter", "Rows that were there before.", "reused"),
    ("stage_rows_expected", "gauge", "Rows when all partitions are done; extrapolated.", "expected"),
    ("stage_share", "gauge", "Share of the stage's partitions (or tasks) that is done, 0 to 1.", "share"),
    ("stage_tasks_total", "counter", "Finished tasks.", "tasks"),
    ("stage_tasks_in_flight", "gauge", "Tasks with workers.", "in_flight"),
    ("stage_busy_seconds_total", "counter", "Seconds that workers spent in the stage, summed.", "busy_s"),
    ("stage_busy_seconds_left", "gauge", "Busy seconds to go; extrapolated.", "busy_left_s"),
    ("stage_seconds_left", "gauge", "Seconds to go by the clock; extrapolated.", "seconds_left"),
)
_TASK_METRICS = (
    ("tasks", "gauge", "Tasks of the run, as far as known.", "total"),
    ("tasks_done_total", "counter", "Finished tasks.", "done"),
    ("tasks_reused_total", "counter", "Tasks that were found finished.", "reused"),
    ("task_failures_total", "counter", "Failed attempts at tasks.", "failed"),
    ("tasks_given_up_total", "counter", "Tasks that were given up.", "given_up"),
    ("tasks_in_flight", "gauge", "Tasks with workers.", "in_flight"),
)


def prometheus_text(facts: Facts) -> str:
    """Return the state in Prometheus' text exposition format."""
    run = {"run": facts["run"]}
    lines: list[str] = []
    for name, kind, text, samples in _metrics(facts):
        found = [(labels, value) for labels, value in samples if value is not None]
        if found:
            lines += [f"# HELP mmdata_{name} {_escape(text)}", f"# TYPE mmdata_{name} {kind}"]
            lines += [f"mmdata_{name}{{{_labels(run | labels)}}} {value:.15g}" for labels, value in found]
    return "\n".join(lines) + "\n"


def _metrics(facts: Facts) -> Iterator[tuple[str, str, str, Samples]]:
    states = [({"state": state}, float(state == facts["state"])) for state in get_args(State)]
    yield "run_state", "gauge", "1 for the state that the run is in.", list(states)
    yield "run_seconds", "gauge", "Seconds since the run started.", [({}, facts["seconds"])]
    yield "run_seconds_left", "gauge", "Seconds to go; extrapolated.", [({}, facts["seconds_left"])]
    yield "last_update_timestamp_seconds", "gauge", "When the run said this, by its own clock.", [({}, facts["updated_wall"])]
    tasks: Mapping[str, Any] = facts["tasks"]
    for name, kind, text, key in _TASK_METRICS:
        yield name, kind, text, [({}, tasks[key])]
    yield "bytes_in_flight", "gauge", "Estimated bytes of the tasks with workers.", [({}, facts["bytes_in_flight"])]
    stages: list[Mapping[str, Any]] = [dict(stage) for stage in facts["stages"]]
    for name, kind, text, key in _STAGE_METRICS:
        yield name, kind, text, [({"stage": stage["stage"]}, stage[key]) for stage in stages]
    worst = [({"stage": stage["stage"]}, float(stage["stage"] == facts["bottleneck"])) for stage in stages]
    yield "stage_bottleneck", "gauge", "1 for the stage with the most busy seconds to go.", list(worst)
    dropped = [({"outcome": reason}, float(num)) for reason, num in facts["outcomes"].items()]
    yield "rows_dropped_total", "counter", "Rows dropped, by outcome.", list(dropped)


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escape(value).replace(chr(34), chr(92) + chr(34))}"' for name, value in labels.items())


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


class MetricsServer(ThreadingTCPServer):
    """Serves what `facts` returns at the time of each request."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, facts: Callable[[], Facts], host: str, port: int) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.facts = facts
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if self.address_family == AF_INET6 else str(host)}:{port}/metrics"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base class has it
        """Say nothing of a client that went away: the terminal shows the run."""


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    server_version = "mmdata"
    sys_version = ""
    timeout = CLIENT_S

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, explain="only /metrics is here")
            return
        body = prometheus_text(self.server.facts()).encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve_metrics(facts: Callable[[], Facts], address: str) -> Iterator[MetricsServer]:
    """Serve the metrics at HOST:PORT while the context is open; without a host only this machine reaches them.

    Port 0 is any free one; `url` says which.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"metrics: `{address}` is not HOST:PORT", hint="for example 127.0.0.1:9100")
    try:
        server = MetricsServer(facts, host, int(port))
    except OSError as error:
        raise ConfigError(
            f"metrics: cannot listen on {address}: {error.strerror or error}", hint="choose another port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
