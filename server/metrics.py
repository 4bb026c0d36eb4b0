"""Every metric, declared once, in base units and never labelled by request.

All series exist at 0 from the start, so that rates and sums are right from the first scrape.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.messages import Stop
from server.errors import REFUSALS
from server.settings import Settings

MILLISECONDS = (1, 2, 5, 7.5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000)
SECONDS = tuple(value / 1000 for value in MILLISECONDS)
OVERRUN = (0.0, *SECONDS)
"""The first bucket counts the answers that were in time."""
RATIO = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
COST_RATIO = (0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5, 2.0, 3.0, 5.0)
PROTOCOLS = ("http", "websocket", "v2")
UNKNOWN = "unknown"
"""The label `model` of requests that name no served model."""

Sample = tuple[tuple[str, ...], float]
"""The labels and the value of one series."""
Series = TypeVar("Series", Counter, Histogram)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server. `models`: the number of exits of each model, by name."""

    def __init__(self, models: Mapping[str, int]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        by_exit = ("model", "exit")
        self.requests = self._counter("requests_total", "Requests that ended", "model", "protocol", "stop")
        self.exits_reached = self._counter("exits_reached_total", "Requests by deepest exit", *by_exit, "stop")
        self.macs = self._counter("macs_total", "Multiply-adds computed for exits that were reached", "model")
        self.macs_saved = self._counter(
            "macs_saved_total", "Multiply-adds that the dense network to its last exit would have taken beyond", "model"
        )
        self.refusals = self._counter(
            "refusals_total", "Requests that were not taken, by the code of their error", "model", "reason"
        )
        self.exits_wasted = self._counter("exits_wasted_total", "Exits that came after their answer", "model")
        self.time_to_exit = self._histogram("time_to_exit_seconds", "From arrival to the map on the host", *by_exit)
        self.stage = self._histogram("stage_seconds", "Computation of one exit since the exit before", *by_exit)
        self.request = self._histogram("request_seconds", "From arrival to the encoded answer", "model", "protocol")
        self.queue = self._histogram("queue_seconds", "From submission to the first step", "model")
        self.decode = self._histogram("decode_seconds", "From the whole body to the pixels", "model")
        self.encode = self._histogram(
            "encode_seconds", "Encoding of a map, with the wait for its thread if any", "model"
        )
        self.asked_deadline = self._histogram("asked_deadline_seconds", "Deadlines that clients asked for", "model")
        self.overrun = self._histogram(
            "deadline_overrun_seconds", "How late answers were; 0 for those in time", "model", buckets=OVERRUN
        )
        self.cancel = self._histogram("cancel_seconds", "From a cancel to the worker letting go", "model")
        self.unsure = self._histogram("unsure_ratio", "Share of unsure positions", *by_exit, buckets=RATIO)
        self.cost_ratio = self._histogram(
            "cost_ratio",
            "Seconds of an exit since the exit before, over those that were predicted",
            *by_exit,
            buckets=COST_RATIO,
        )
        self.worker_restarts = self._counter("worker_restarts_total", "Workers that were started after the first")
        self.queue_depth = self._gauge("queue_depth", "Jobs that wait for their first exit")
        self.inflight = self._gauge("inflight_requests", "Requests that have arrived and not ended")
        self.seated = self._gauge("seated_requests", "Those of inflight_requests whose image has come, too")
        self.websockets = self._gauge("websocket_connections", "Open WebSocket connections")
        self.shared_memory = self._gauge("shared_memory_bytes", "Memory taken by images and maps of open jobs")
        self.worker_up = self._gauge("worker_up", "1 while the worker of a device is ready", "device")
        self.executor_info = self._gauge("executor_info", "1 for what runs each model", "model", "device", "executor")
        self.precision_info = self._gauge("precision_info", "1 for the precision of each model", "model", "precision")
        build = self._gauge("build_info", "1 for the program that runs", "version", "python")
        build.labels(_version(), platform.python_version()).set(1)
        for model, exits in {**models, UNKNOWN: 0}.items():
            self._touch(model, exits)

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Let `gauge` show what `read` returns at the time of the scrape."""
        gauge.set_function(read)

    def watch_each(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        read: Callable[[], Iterable[Sample]],
        *,
        counts: bool = False,
    ) -> None:
        """Show the series that `read` returns at the time of the scrape, as a gauge or, if it `counts`, a counter."""
        self.registry.register(_Family(f"anytime_{name}", text, labels, read, counts))

    def show_limits(self, settings: Settings) -> None:
        """Show the limits that the settings set, for alerts that compare with them."""
        for name, text, limit in (
            ("max_open_requests", "Requests that may be open at once", settings.max_open),
            ("max_websocket_connections", "WebSocket connections that may be open at once", settings.max_sockets),
            ("max_shared_memory_bytes", "Memory for images and maps of open jobs", settings.shared_memory_bytes),
            ("max_body_bytes", "Largest image file", settings.max_body_bytes),
            ("max_image_pixels", "Largest image, after padding", settings.max_pixels),
            ("max_deadline_seconds", "Longest deadline", settings.max_deadline_ms / 1000),
            ("default_deadline_seconds", "Deadline of requests that name none", settings.default_deadline_ms / 1000),
        ):
            self._gauge(name, text).set(limit)

    def ended(self, model: str, stop: Stop) -> int:
        """The number of requests for a model that ended with `stop`."""
        found = (
            self.registry.get_sample_value(
                "anytime_requests_total", {"model": model, "protocol": protocol, "stop": stop.value}
            )
            for protocol in PROTOCOLS
        )
        return sum(int(count or 0) for count in found)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes]:
        """The text in parts of some milliseconds at most, so that an event loop can do other things between them."""
        for family in self.registry.collect():
            yield generate_latest(_Collected(family))

    def _touch(self, model: str, exits: int) -> None:
        """Create the series of a model, at 0."""
        for stop in Stop:
            for protocol in PROTOCOLS:
                self.requests.labels(model, protocol, stop)
            for exit_index in range(exits + 1):
                self.exits_reached.labels(model, exit_index, stop)
        for protocol in PROTOCOLS:
            self.request.labels(model, protocol)
        for reason in REFUSALS:
            self.refusals.labels(model, reason)
        for counter in (self.macs, self.macs_saved, self.exits_wasted):
            counter.labels(model)
        for timed in (self.queue, self.decode, self.encode, self.asked_deadline, self.overrun, self.cancel):
            timed.labels(model)
        for exit_index in range(1, exits + 1):
            for histogram in (self.time_to_exit, self.stage, self.unsure, self.cost_ratio):
                histogram.labels(model, exit_index)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return _remembering(Counter(f"anytime_{name}", text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"anytime_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return _remembering(Histogram(f"anytime_{name}", text, labels, buckets=buckets, registry=self.registry))


class _Collected(Collector):
    """One family that has been read."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


class _Family(Collector):
    """Series that are read at the time of the scrape."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Iterable[Sample]], counts: bool
    ) -> None:
        self._kind = CounterMetricFamily if counts else GaugeMetricFamily
        self._described = name, text, labels
        self._read = read

    def describe(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        """Tells the registry the names of the families without reading their series."""
        name, text, labels = self._described
        return [self._kind(name, text, labels=labels)]

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        [family] = self.describe()
        for labels, value in self._read():
            family.add_metric(labels, value)
        return [family]


def _version() -> str:
    try:
        return version("anytime-inference-server")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _remembering(metric: Series) -> Series:
    """Make `metric` cache its series by their labels. Each request looks up about thirty, and none is ever removed."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric
