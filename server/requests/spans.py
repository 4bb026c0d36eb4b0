"""OpenTelemetry spans: one for each request, and under it one for decoding, waiting, each exit and each encoding.

Only servers with --traces import this module, and OpenTelemetry with it.
"""

import math
import time
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

from server.engine.messages import Stop
from server.requests.record import RequestRecord
from server.trace_context import TraceContext

FAILED = (Stop.NO_EXIT, Stop.REJECTED, Stop.ERROR)
"""The stops of a request that count as the server's failure."""


class SpanTracer:
    """Makes the spans of requests. The spans inside of a request are made when it has ended, from the times in its
    record."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("anytime")
        self._spans: dict[int, Span] = {}

    def begin(self, record: RequestRecord, parent: TraceContext | None) -> TraceContext:
        span = self._tracer.start_span(
            "predict",
            _context(parent),
            SpanKind.SERVER,
            {"anytime.protocol": record.protocol},
            start_time=_unix_ns(record.arrived_s),
        )
        self._spans[id(record)] = span
        found = span.get_span_context()
        return TraceContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", f"{found.trace_flags:02x}")

    def end(self, record: RequestRecord) -> None:
        span = self._spans.pop(id(record), None)
        if span is None or not span.is_recording():
            return
        context = set_span_in_context(span, Context())
        for name, began_s, ended_s, attributes in _parts(record):
            part = self._tracer.start_span(name, context, attributes=attributes, start_time=_unix_ns(began_s))
            part.end(_unix_ns(ended_s))
        span.set_attributes(_attributes(record))
        if record.stop in FAILED:
            span.set_status(Status(StatusCode.ERROR, record.code))
        assert record.elapsed_s is not None
        span.end(_unix_ns(record.arrived_s + record.elapsed_s))

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


def collector() -> TracerProvider:
    """Sends spans to the collector that the variables OTEL_* describe."""
    provider = TracerProvider(resource=Resource.create({"service.name": "anytime"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _parts(record: RequestRecord) -> Iterator[tuple[str, float, float, Attributes]]:
    """What happened inside of a request: name, begin and end of each part, and its attributes."""
    for work in record.codec_work:
        yield work.name, work.began_s, work.ended_s, None
    job = record.job
    if job is None or not job.exits:
        return
    began_s = job.exits[0].started_s
    yield "queue", job.submitted_s, began_s, None
    for done in job.exits:
        yield (
            f"exit {done.exit}",
            began_s,
            done.finished_s,
            {"anytime.exit": done.exit, "anytime.stage_s": done.stage_s, "anytime.active_share": done.active_share},
        )
        began_s = done.finished_s


def _attributes(record: RequestRecord) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {
        "anytime.request_id": record.id,
        "anytime.model": record.model,
        "anytime.exit": record.exit,
        "anytime.stop": str(record.stop),
    }
    if math.isfinite(record.deadline_s):
        found["anytime.deadline_ms"] = round(1000 * record.budget_s)
    if record.code:
        found["anytime.code"] = record.code
    return found


def _context(parent: TraceContext | None) -> Context:
    if parent is None:
        return Context()
    flags = TraceFlags(int(parent.flags, 16))
    span = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(span), Context())


def _unix_ns(monotonic_s: float) -> int:
    """A time of `time.monotonic()` in nanoseconds since 1970."""
    return time.time_ns() - round(1e9 * (time.monotonic() - monotonic_s))
