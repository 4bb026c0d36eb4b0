"""Spans, against OpenTelemetry's own exporter to memory."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import live
import pytest
import tiny
from hosts import same_process_only
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.engine.messages import Exited, Stop
from server.errors import NoExitError
from server.metrics import Metrics
from server.requests.record import CodecWork, RequestRecord
from server.requests.registry import RequestRegistry
from server.requests.spans import SpanTracer
from server.trace_context import TraceContext

CLIENT = TraceContext("1" * 32, "2" * 16, "01")


class Traced:
    """A registry whose spans are at hand, by name."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._tracer = SpanTracer(provider)
        self._registry = RequestRegistry(Metrics({"model": 4}), 2, 3, self._tracer.end)

    @contextmanager
    def request(self, arrived_s: float, parent: TraceContext | None = None) -> Iterator[RequestRecord]:
        with self._registry.open("http", arrived_s, "mine", model="model") as record:
            record.trace = self._tracer.begin(record, parent)
            yield record

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


def job(began_s: float) -> Any:
    exits = [Exited(7, index, 1 / index, 10, 0.1, began_s + 0.02, began_s + 0.02 + 0.1 * index) for index in (1, 2)]
    return SimpleNamespace(exits=exits, latest=2, submitted_s=began_s + 0.01)


def test_a_request_and_its_parts_are_spans_of_the_clients_trace() -> None:
    traced, now_s = Traced(), time.monotonic()
    with traced.request(now_s - 1, CLIENT) as record:
        assert record.trace is not None and record.trace.trace_id == CLIENT.trace_id
        record.deadline_s, record.stop, record.job = now_s - 0.5, Stop.DEADLINE, job(now_s - 1)
        record.codec_work += [
            CodecWork("decode", now_s - 1, now_s - 0.99),
            CodecWork("encode", now_s - 0.7, now_s - 0.69),
        ]
    spans = traced.spans
    request = spans.pop("predict")
    assert request.parent and f"{request.parent.span_id:016x}" == CLIENT.span_id
    assert f"{request.context.span_id:016x}" == record.trace.span_id
    assert request.attributes == {
        "anytime.protocol": "http",
        "anytime.request_id": "mine",
        "anytime.model": "model",
        "anytime.exit": 2,
        "anytime.stop": "deadline",
        "anytime.deadline_ms": 500,
    }
    assert set(spans) == {"decode", "queue", "exit 1", "exit 2", "encode"}
    assert request.start_time and spans["exit 2"].attributes
    for span in spans.values():
        assert span.parent and span.parent.span_id == request.context.span_id
    lasts_ms = {name: round((span.end_time - span.start_time) / 1e6) for name, span in spans.items()}  # type: ignore[operator]
    assert lasts_ms == {"decode": 10, "queue": 10, "exit 1": 100, "exit 2": 100, "encode": 10}
    starts_ms = {name: round((span.start_time - request.start_time) / 1e6) for name, span in spans.items()}  # type: ignore[operator]
    assert starts_ms == {"decode": 0, "queue": 10, "exit 1": 20, "exit 2": 120, "encode": 300}


def test_a_request_without_a_parent_begins_a_trace_and_may_fail_without_a_job() -> None:
    traced = Traced()
    with pytest.raises(NoExitError) as caught, traced.request(time.monotonic()):
        raise NoExitError("late", "no_exit")
    [request] = traced.spans.values()
    assert request.parent is None and not request.status.is_ok and request.status.description == "no_exit"
    assert caught.value.trace and caught.value.trace.trace_id == f"{request.context.trace_id:032x}"


def test_what_the_client_does_not_sample_is_not_recorded() -> None:
    traced = Traced()
    parent = TraceContext("1" * 32, "2" * 16, "00")
    with traced.request(time.monotonic(), parent) as record:
        record.stop = Stop.COMPLETE
        assert record.trace and (record.trace.trace_id, record.trace.flags) == ("1" * 32, "00")
    assert not traced.spans


class Exporting(SimpleSpanProcessor):
    """Remembers that it was shut down."""

    over = False

    def shutdown(self) -> None:
        self.over = True
        super().shutdown()


@same_process_only
def test_a_server_reports_the_requests_of_every_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    exporting = Exporting(exporter)
    provider.add_span_processor(exporting)
    monkeypatch.setattr("server.requests.service.collector_tracer", lambda: SpanTracer(provider))
    folder = live.write_configs(tmp_path, (tiny.SEGMENTATION,))
    with live.scripted(folder, traces=True) as (server, next_worker):
        worker = next_worker()
        worker.say_ready()
        server.wait_for(lambda: server.http.get("/health/ready").is_success)
        call = live.Later(server.predict)
        worker.finish(worker.hear_job())
        assert call.result().is_success
        with server.connect(additional_headers={"traceparent": str(CLIENT)}) as connection:
            connection.send('{"type": "predict", "id": "a", "encoding": "json"}')
            connection.send(live.photo())
            spec = worker.hear_job()
            for exit_index in (1, 2):
                worker.reach(spec, exit_index)
                while json.loads(connection.recv(live.PATIENCE_S)).get("exit") != exit_index:
                    pass
            worker.end(spec, Stop.DEADLINE)
            assert json.loads(connection.recv(live.PATIENCE_S))["type"] == "end"
        server.wait_for(lambda: server.metric("anytime_inflight_requests") == 0)
        coded = [server.metric(f"anytime_{part}_seconds_count") for part in ("decode", "encode")]
        assert coded == [2, 3], "every exit of the stream is encoded"
        assert not exporting.over
    assert exporting.over
    spans = exporter.get_finished_spans()
    first, second = sorted((span for span in spans if span.name == "predict"), key=lambda span: span.start_time or 0)
    assert [(span.attributes or {})["anytime.protocol"] for span in (first, second)] == ["http", "websocket"]
    assert first.parent is None and second.parent and f"{second.parent.span_id:016x}" == CLIENT.span_id
    for root, exits in ((first, 4), (second, 2)):
        parts = [span.name for span in spans if span.parent and span.parent.span_id == root.context.span_id]
        encoded = 1 if root is first else exits
        names = ["decode", "queue", *(f"exit {number}" for number in range(1, exits + 1)), *["encode"] * encoded]
        assert sorted(parts) == sorted(names)
