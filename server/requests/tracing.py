"""Tracing: which span of a distributed trace a request is, and who is told of it."""

from typing import Protocol

from server.requests.record import RequestRecord
from server.trace_context import TraceContext


class Tracer(Protocol):
    """Follows requests through distributed traces."""

    def begin(self, record: RequestRecord, parent: TraceContext | None) -> TraceContext | None:
        """The span of a request that has arrived; None: it is in no trace. `parent`: the span that sent it, or None."""

    def end(self, record: RequestRecord) -> None:
        """A request has ended; its job is still there. It may have been refused before it began."""

    def close(self) -> None:
        """The server ends."""


class TraceRelay:
    """Takes a place in the trace of the client, if there is one, and tells nobody."""

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
