"""A run as OpenTelemetry spans; without a collector, or without the extra, nothing is lost but the spans."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from mmdata.errors import ConfigError
from tests.toyrun import EPOCH_S, Run


@pytest.fixture(autouse=True)
def _no_spans_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


def spans_of(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_run_is_spans_of_tasks_and_steps(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    run = Run(tmp_path, provider=provider)
    run.clock.sleep(2)
    run.first(0)
    run.progress.launched(run.scatter(1))
    run.clock.sleep(3)
    run.progress.failed(run.scatter(1), "worker died")
    run.progress.end("done")
    spans = spans_of(exporter)
    assert set(spans) == {"run toy", "download + keep", "source", "download", "keep", "dedupe"}
    root, task, failed = spans["run toy"], spans["download + keep"], spans["dedupe"]
    assert seconds(root) == (0, 10)
    assert (seconds(task), seconds(spans["source"]), seconds(spans["download"])) == ((2, 7), (2, 3), (3, 7))
    assert parent(task) == parent(failed) == ident(root)
    assert parent(spans["download"]) == ident(task)
    assert task.attributes is not None
    assert {name.removeprefix("mmdata."): task.attributes[name] for name in task.attributes} == {
        "kind": "segment", "step": 0, "unit": 0, "key": "s0u0", "worker": "node:7", "rows": 10, "computed": 18,
        "dropped.http_4xx": 2,
    }  # fmt: skip
    assert (seconds(failed), failed.status.status_code, failed.status.description) == ((7, 10), StatusCode.ERROR, "worker died")
    assert root.status.status_code is StatusCode.UNSET


def test_a_run_that_stops_is_a_span_with_an_error(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Run(tmp_path, provider=provider).progress.end("stopped", "the disk is full")
    status = spans_of(exporter)["run toy"].status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "the disk is full")


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9 - EPOCH_S, span.end_time / 1e9 - EPOCH_S


def ident(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


class _Collector(BaseHTTPRequestHandler):
    names: tuple[str, ...] = ()

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            service = {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"]
            spans = [span.name for scope in resource.scope_spans for span in scope.spans]
            type(self).names += tuple(f"{service}: {name}" for name in spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, type[_Collector]]]:
    """A collector on loopback, which keeps the names of spans."""
    handler = type("Collector", (_Collector,), {"names": ()})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_go_where_the_environment_says(
    tmp_path: Path, collector: tuple[str, type[_Collector]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    run = Run(tmp_path)
    run.first(0)
    run.progress.end("done")
    assert sorted(received.names) == [
        "mmdata: download", "mmdata: download + keep", "mmdata: keep", "mmdata: run toy", "mmdata: source",
    ]  # fmt: skip
    assert "telemetry" not in run.stream.getvalue()


def test_a_collector_that_is_not_there_neither_fails_nor_holds_up_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("mmdata.engine.telemetry.FLUSH_S", 0.2)
    run = Run(tmp_path)
    run.first(0)
    run.progress.end("done")
    assert run.saved()["state"] == "done"
    assert run.stream.getvalue().endswith("\ntelemetry: 5 of 5 spans were not delivered within 0.2 s\n")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "no exporter for OTEL_TRACES_EXPORTER=zipkin"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "protocol grpc"),
    ],
)
def test_an_exporter_that_we_do_not_have_is_refused(
    tmp_path: Path, variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Run(tmp_path)


def test_spans_without_the_extra_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.delitem(sys.modules, "mmdata.engine.telemetry", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(ConfigError, match=r"mmdata\[telemetry\]"):
        Run(tmp_path)


def test_nothing_of_telemetry_is_loaded_until_it_is_used() -> None:
    code = (
        "import sys, mmdata.cli.main, mmdata.engine.progress\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'rich.live'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
