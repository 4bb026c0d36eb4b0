"""Tracing: gives each request its span of a distributed trace, and reports the spans."""

from typing import Protocol

from server.requests.record import RequestRecord
from server.trace_context import TraceContext


class Tracer(Protocol):
    """Follows requests through distributed traces."""

    def begin(self, record: RequestRecord, parent: TraceContext | None) -> TraceContext | None:
        """The span of a request that has arrived; None: it is in no trace. `parent`: the span that sent it, or None."""

    def end(self, record: RequestRecord) -> None:
        """Report a request that has ended; its job, if it got one, is still there."""

    def close(self) -> None:
        """Send what was not sent yet: the server ends."""


class TraceRelay:
    """Continues the client's trace, if the client sends one, and reports no spans."""

    def begin(self, _: RequestRecord, parent: TraceContext | None) -> TraceContext | None:
        return parent and parent.child()

    def end(self, record: RequestRecord) -> None:
        pass

    def close(self) -> None:
        pass


def collector_tracer() -> Tracer:
    """Sends spans to an OpenTelemetry collector. Raises ValueError without OpenTelemetry."""
    try:
        from server.requests.spans import SpanTracer, collector  # noqa: PLC0415 - an extra that most servers lack
    except ImportError as error:
        raise ValueError(
            f"--traces needs OpenTelemetry ({error}); install the extra: pip install '.[traces]'"
        ) from None
    return SpanTracer(collector())
