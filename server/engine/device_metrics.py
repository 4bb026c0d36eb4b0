"""What metrics show of the devices: read when Prometheus asks, at no cost to a request."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from server.catalog import Catalog
from server.engine.device import Device
from server.engine.usage import Usage
from server.metrics import Metrics, Sample
from server.scheduling.costs import CostModel, Shape

BY_EXIT = ("model", "device", "exit")


@dataclass(frozen=True)
class DeviceMetrics:
    """Reads the series of all devices. `usage`: what the worker of a device uses of the machine."""

    catalog: Catalog
    devices: Sequence[Device]
    usage: Callable[[Device], Usage]

    def show(self, metrics: Metrics) -> None:
        """Let `metrics` show them."""
        for name, text, read in (
            (
                "typical_exit_seconds",
                "Seconds to an exit, as learnt, at the model's own size; 0 at first",
                self.typical_s,
            ),
            ("safe_exit_seconds", "As typical_exit_seconds, but 95 % of requests are no slower", self.safe_s),
        ):
            metrics.watch_each(name, text, BY_EXIT, read)
        metrics.watch_each("slow_down_ratio", "The present pace over the usual one", ("device",), self.slow_down)
        metrics.watch_each(
            "worker_cpu_seconds", "CPU time of the worker that runs now", ("device",), self.cpu_s, counts=True
        )
        metrics.watch_each(
            "worker_memory_bytes",
            "Resident memory of the worker, shared memory included",
            ("device",),
            self.memory_bytes,
        )

    def typical_s(self) -> Iterator[Sample]:
        return self._exits(CostModel.typical_s)

    def safe_s(self) -> Iterator[Sample]:
        return self._exits(CostModel.safe_s)

    def _exits(self, estimate: Callable[[CostModel, str, Shape, int], float]) -> Iterator[Sample]:
        """The seconds to each exit; 0 while nothing is known, also those of an `estimate` that adds a reserve."""
        for device in self.devices:
            for model in self.catalog:
                shape = model.input_shape(*model.config.size)
                for exit_index in range(1, model.config.exits + 1):
                    known = device.costs.typical_s(model.name, shape, exit_index) > 0
                    seconds = estimate(device.costs, model.name, shape, exit_index) if known else 0.0
                    yield (model.name, device.label, str(exit_index)), seconds

    def slow_down(self) -> Iterator[Sample]:
        for device in self.devices:
            yield (device.label,), device.costs.slow_down

    def cpu_s(self) -> Iterator[Sample]:
        for device in self.devices:
            yield (device.label,), self.usage(device).cpu_s

    def memory_bytes(self) -> Iterator[Sample]:
        for device in self.devices:
            yield (device.label,), self.usage(device).memory_bytes
