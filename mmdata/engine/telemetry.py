"""A run as OpenTelemetry spans: one for the run, one for each finished task and failed attempt, one for each step in it.

Only `progress` imports this file, and only when spans are wanted. They are handed over in the background; a collector that
does not answer costs a run nothing but the wait at its end, which is bounded.
"""

import logging
import os
import threading
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from mmdata.clock import Clock
from mmdata.engine.facts import State
from mmdata.engine.task import Task, TaskReport
from mmdata.errors import ConfigError

FLUSH_S = 5.0
MAX_MESSAGE = 1000


class Telemetry:
    """Makes the spans of one run. Times go by the clock that only grows, counted from the wall time at the start."""

    def __init__(self, run: str, clock: Clock, provider: TracerProvider | None = None) -> None:
        self._clock = clock
        self._zero = clock.wall() - clock.monotonic()
        self._delivery = None if provider is not None else _Delivery(_exporter())
        self._provider = provider or _provider(self._delivery)
        self._tracer = self._provider.get_tracer("mmdata")
        self._made = 0
        self._root = self._tracer.start_span(f"run {run}", start_time=self._now(), attributes={"mmdata.run": run})
        self._inside = set_span_in_context(self._root)

    def task(self, task: Task, report: TaskReport, stages: Sequence[str], dropped: dict[str, int]) -> None:
        """Make the spans of a task that has just finished.

        Steps take turns chunk by chunk, so a step's span is as long as its turns together, one step after the other.
        """
        end = self._now()
        at = end - _nanoseconds(report.seconds)
        steps = {step["index"]: step for step in report.record.get("steps", [])}
        span = self._start(task, at, self._inside)
        span.set_attribute("mmdata.worker", report.worker)
        span.set_attribute("mmdata.rows", max((step["needed"] for step in steps.values()), default=0))
        span.set_attribute("mmdata.computed", sum(step["computed"] for step in steps.values()))
        for reason, num in dropped.items():
            if num:
                span.set_attribute(f"mmdata.dropped.{reason}", num)
        for index, seconds in sorted(report.step_seconds.items()):
            child = self._tracer.start_span(stages[index + 1], set_span_in_context(span), start_time=at)
            for name in ("needed", "computed") if index in steps else ():
                child.set_attribute("mmdata.rows" if name == "needed" else "mmdata.computed", steps[index][name])
            at = min(at + _nanoseconds(seconds), end)
            self._finish(child, at)
        self._finish(span, end)

    def failed(self, task: Task, seconds: float, message: str, *, again: bool) -> None:
        """Make the span of a failed attempt, which was in flight for so many seconds."""
        end = self._now()
        span = self._start(task, end - _nanoseconds(seconds), self._inside)
        span.set_attribute("mmdata.again", again)
        span.set_status(Status(StatusCode.ERROR, message[:MAX_MESSAGE]))
        self._finish(span, end)

    def end(self, state: State, why: str) -> str:
        """End the run's span and wait a little until all are delivered; return a line to print if they were not."""
        self._root.set_attribute("mmdata.state", state)
        if state != "done":
            self._root.set_status(Status(StatusCode.ERROR, (why or state)[:MAX_MESSAGE]))
        self._finish(self._root, self._now())
        finish = self._provider.force_flush if self._delivery is None else self._provider.shutdown
        # The SDK's own time limits do not hold while an export is being tried again.
        thread = threading.Thread(target=finish, name="telemetry", daemon=True)
        thread.start()
        thread.join(FLUSH_S)
        lost = 0 if self._delivery is None else self._made - self._delivery.delivered
        return f"telemetry: {lost:,} of {self._made:,} spans were not delivered within {FLUSH_S:g} s\n" if lost else ""

    def _start(self, task: Task, at: int, inside: Context) -> Span:
        facts = {"mmdata.kind": task.kind, "mmdata.step": task.step, "mmdata.unit": task.unit, "mmdata.key": task.key}
        return self._tracer.start_span(task.label, inside, start_time=at, attributes=facts)

    def _finish(self, span: Span, at: int) -> None:
        self._made += span.is_recording()  # a sampler may have refused it
        span.end(at)

    def _now(self) -> int:
        return _nanoseconds(self._zero + self._clock.monotonic())


class _Delivery(SpanExporter):
    """Counts what an exporter delivers, so that a run can say in one line that something was lost."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.delivered = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        self.delivered += len(spans) * (result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _exporter() -> SpanExporter:
    kind = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if kind != "otlp" or (protocol or "http/protobuf") != "http/protobuf":
        raise ConfigError(
            f"OpenTelemetry: no exporter for OTEL_TRACES_EXPORTER={kind}, protocol {protocol or 'http/protobuf'}",
            hint="spans go out by otlp over http/protobuf; OTEL_TRACES_EXPORTER=none switches them off",
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # It would report every attempt amid the live line; at the end we say it once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return OTLPSpanExporter()


def _provider(exporter: SpanExporter | None) -> TracerProvider:
    assert exporter is not None
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "mmdata"})
    # Not at exit: that wait has no bound.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
