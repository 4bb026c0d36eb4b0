"""The worker pool: the devices of a server, the workers on them, and which of these takes a request."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from server.catalog import Catalog
from server.engine.device import Device, LearntCost, labelled
from server.engine.device_metrics import DeviceMetrics
from server.engine.messages import Broken, Command, Event, LoadPlan, ModelFacts, Ready, TrafficCap, Unloadable
from server.engine.place import Place
from server.engine.routing import route
from server.engine.shared_memory import Arena
from server.engine.supervisor import Supervisor
from server.engine.worker_process import WorkerProcess
from server.errors import UnavailableError
from server.metrics import Metrics
from server.scheduling.costs import CostModel
from server.scheduling.expected import Expected, Refusal
from server.scheduling.pace import Pace
from server.settings import Settings

logger = logging.getLogger("anytime.pool")

KNOWN_SHAPES = 32
"""A new worker is told what stages cost at so many shapes. More would make the plan larger than a socket's buffer, and
the event loop would wait until the worker reads it."""
RESTART_S = 5.0
"""The wait that clients are told while a worker starts."""


@dataclass(frozen=True)
class PoolListener:
    """Callbacks about the workers. Each gets the device that it is about, `unloadable` a reason instead.

    `hear`: a worker has told an event that concerns a job. `lost`: the worker is gone, but may still touch the shared
    memory. `ended`: its process has ended, and the shared memory is safe. `step_s`: see `Supervisor`. `unloadable`: no
    worker can serve, because the models cannot be loaded or the settings name a device that cannot load them.
    """

    hear: Callable[[Device, Event], None]
    lost: Callable[[Device], None]
    ended: Callable[[Device], None]
    step_s: Callable[[Device], float]
    unloadable: Callable[[str], None]


class WorkerPool:
    """Owns the devices that the settings name, and keeps a worker running on each. `launch` starts a worker."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        metrics: Metrics,
        arena: Arena,
        *,
        launch: Callable[[LoadPlan], WorkerProcess],
        listener: PoolListener,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._metrics = metrics
        self._arena = arena
        self._launch = launch
        self._listener = replace(listener, unloadable=self._unloadable)
        self._tell_unloadable = listener.unloadable
        self._keys = itertools.count(1)
        self._cap = TrafficCap(None)
        self._decided = asyncio.Event()
        self._failure: str | None = None
        costs = {name: CostModel() for name in settings.devices}
        paces = {name: Pace() for name in settings.devices}
        preparing_s: dict[int, float] = {}
        self.devices = [
            Device(name, label, costs[name], catalog, metrics, pace=paces[name], preparing_s=preparing_s)
            for name, label in labelled(settings.devices)
        ]
        self._supervisors = {device: self._supervisor(device) for device in self.devices}
        DeviceMetrics(catalog, self.devices, lambda device: self._supervisors[device].usage()).show(metrics)

    def start(self) -> None:
        """Start the workers. Of several on one device the first measures, and the others start with what it found."""
        for name in dict.fromkeys(device.name for device in self.devices):
            self._supervisors[next(device for device in self.devices if device.name == name)].start()

    def stop(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.stop()

    async def loaded(self) -> None:
        """Wait until a worker can serve. Raises ValueError, with the reason, if none ever can."""
        await self._decided.wait()
        if self._failure is not None:
            raise ValueError(f"the models cannot be loaded: {self._failure}")

    def say(self, device: Device, command: Command) -> None:
        """Send a command to the worker of a device."""
        self._supervisors[device].say(command)

    def cap(self, max_exit: int | None) -> None:
        """Let the traffic end jobs at `max_exit`; None: it ends none."""
        if max_exit != self._cap.max_exit:
            self._cap = TrafficCap(max_exit)
            for device in self.ready:
                self.say(device, self._cap)

    # --- what there is ---

    @property
    def ready(self) -> list[Device]:
        """The devices whose workers can serve: every exit of every model is warm."""
        return [device for device in self.devices if device.ready is not None]

    @property
    def answering(self) -> list[Device]:
        """The devices that can serve and whose workers do not owe a sign of life."""
        return [device for device in self.ready if self._supervisors[device].answers]

    @property
    def waits_for(self) -> str:
        """What keeps the server from being ready: workers that are `starting`, or `unresponsive` ones."""
        return "unresponsive" if self.ready else "starting"

    @property
    def facts(self) -> dict[str, ModelFacts]:
        """The facts about each model, from the first device that knows them; empty before one was ready."""
        return next((device.facts for device in (*self.ready, *self.devices) if device.facts), {})

    def learnt(self, name: str) -> list[LearntCost]:
        """What the exits of a model cost on each device, at each shape that was seen."""
        distinct = {device.name: device for device in self.devices}
        return [cost for device in distinct.values() for cost in device.learnt(name)]

    @property
    def open_requests(self) -> int:
        """Requests that were admitted and have not ended."""
        return sum(len(device.backlog) for device in self.devices)

    def busy(self, now_s: float) -> float:
        """The share of the latest seconds in which the devices computed, 0..1."""
        return sum(device.busy(now_s) for device in self.devices) / len(self.devices)

    def to_json(self) -> dict[str, Any]:
        """The devices, and what runs the models on the first of them that can serve."""
        first = next(iter(self.ready), None)
        return {
            "device": ",".join(device.label for device in self.devices),
            "executor": first.ready.executor if first and first.ready else self._settings.executor,
            "devices": [device.to_json(answers=self._supervisors[device].answers) for device in self.devices],
            "models": [model.name for model in self._catalog],
            "chosen": {name: asdict(facts.chosen) for name, facts in first.facts.items()} if first else {},
        }

    def check_ready(self) -> None:
        """Raises UnavailableError while no worker can serve."""
        if not self.ready:
            sentence = f"no worker is ready, the models are being loaded; ask again in {RESTART_S:g} s"
            raise UnavailableError(sentence, "starting", RESTART_S)

    # --- routing ---

    def check(self, expected: Expected, now_s: float) -> None:
        """Raises UnavailableError if a request, of which this is the first that is known, would get no place now."""
        try:
            self._route(expected, now_s)
        except UnavailableError:
            self._ask(expected, now_s)
            raise

    def admit(self, expected: Expected, now_s: float) -> Place:
        """A place at the worker that will finish the required exit first, for a request that was checked before. Raises
        UnavailableError if there is none."""
        self._ask(expected, now_s)
        device = self._route(expected, now_s)
        place = Place(next(self._keys), device, device.backlog, expected)
        place.backlog.add(place.key, expected, now_s)
        return place

    def ready_s(self, expected: Expected, now_s: float) -> float | None:
        """Predicted seconds until a request would have its required exit; None while no worker can serve."""
        return min((device.backlog.ready_s(expected, now_s) for device in self.ready), default=None)

    def check_again(self, place: Place, expected: Expected, now_s: float) -> None:
        """Now that the image is there: move the place to where it fits if the image is dearer than expected or the
        worker is lost. Raises UnavailableError if there is no such worker."""
        if place.lost or self._alone_s(place.device, expected) > self._alone_s(place.device, place.expected):
            place.backlog.withdraw(place.key, now_s)  # it must not wait for itself
            place.device = self._route(expected, now_s)
            place.backlog = place.device.backlog
            place.backlog.add(place.key, expected, now_s)
        place.expected = expected
        place.backlog.update(place.key, expected, now_s)

    def _ask(self, expected: Expected, now_s: float) -> None:
        """Count a request as asked for, see `Backlog.ask`."""
        devices = self.answering or self.ready
        for device in devices:
            device.backlog.ask(expected, now_s, len(devices))

    def _route(self, expected: Expected, now_s: float) -> Device:
        self.check_ready()
        found = route([device.backlog for device in self.answering or self.ready], expected, now_s)
        if isinstance(found, Refusal):
            takes_s = min(self._alone_s(device, expected) for device in self.ready)
            raise _overloaded(expected, found, takes_s)
        return next(device for device in self.devices if device.backlog is found)

    def _alone_s(self, device: Device, expected: Expected) -> float:
        return device.costs.typical_s(expected.model, expected.shape, expected.required)

    # --- workers ---

    def _supervisor(self, device: Device) -> Supervisor:
        listener = self._listener
        return Supervisor(
            launch=lambda: self._start(device),
            hear=lambda event: self._hear(device, event),
            lost=lambda: self._lost(device),
            ended=lambda: listener.ended(device),
            unloadable=listener.unloadable,
            step_s=lambda: listener.step_s(device),
            load_s=self._settings.load_timeout_s,
        )

    def _start(self, device: Device) -> WorkerProcess:
        if self._supervisors[device].starts > 1:
            self._metrics.worker_restarts.inc()
        return self._launch(self._plan(device))

    def _plan(self, device: Device) -> LoadPlan:
        settings = self._settings
        return LoadPlan(
            models={model.name: str(model.directory.resolve()) for model in self._catalog},
            device=device.name,
            executor=settings.executor,
            threads=settings.threads,
            known=device.costs.snapshot(KNOWN_SHAPES),
            chosen={name: facts.chosen for name, facts in device.facts.items()},
            arena_fd=self._arena.fd,
            arena_bytes=self._arena.size_bytes,
            log_level=settings.log_level,
            log_format=settings.log_format,
            precision=settings.precision,
            sharing=sum(other.name == device.name for other in self.devices),
            max_batches={name: facts.max_batch for name, facts in device.facts.items()},
        )

    def _hear(self, device: Device, event: Event) -> None:
        match event:
            case Ready():
                self._now_ready(device, event)
            case Broken(reason):
                device.broken(reason)
            case Unloadable(reason) if self.ready and self._supervisors[device].starts > 1:
                logger.error("the models cannot be loaded on %s any more: %s", device.label, reason)
            case Unloadable(reason):
                self._listener.unloadable(reason)
            case _:
                self._listener.hear(device, event)

    def _unloadable(self, reason: str) -> None:
        """No worker can ever serve."""
        self._failure = reason
        self._decided.set()
        self._tell_unloadable(reason)

    def _now_ready(self, device: Device, ready: Ready) -> None:
        device.now_ready(ready)
        self._decided.set()
        if self._cap.max_exit is not None:
            self.say(device, self._cap)
        for other in self.devices:
            if other.name == device.name and not self._supervisors[other].starts:
                other.inherit(ready.models)
                self._supervisors[other].start()
        metrics = self._metrics
        metrics.executor_info.clear()
        metrics.precision_info.clear()
        for each in self.devices:
            for name, facts in each.facts.items():
                metrics.executor_info.labels(name, each.label, facts.chosen.executor).set(1)
                metrics.precision_info.labels(name, facts.chosen.precision).set(1)

    def _lost(self, device: Device) -> None:
        device.lost()
        self._listener.lost(device)


def _overloaded(expected: Expected, refusal: Refusal, takes_s: float) -> UnavailableError:
    """`takes_s`: what the required exit takes alone."""
    takes_ms, needs_ms, left_ms, wait_ms = (
        1000 * max(0.0, value) for value in (takes_s, refusal.needs_s, refusal.left_s, refusal.wait_s)
    )
    required = f"not begun: exit {expected.required}"
    if takes_ms > left_ms:
        why = f"{required} takes {takes_ms:.0f} ms here, and {left_ms:.0f} ms are left; give a later deadline_ms"
        why = f"{why}, a smaller image, or ask again in {wait_ms:.0f} ms, when the waiting requests have been served"
        return UnavailableError(why, "overloaded", refusal.wait_s)
    if needs_ms > left_ms:
        why = f"{required} would be there in {needs_ms:.0f} ms, and {left_ms:.0f} ms are left"
    else:
        why = f"{required} would be there in {needs_ms:.0f} of {left_ms:.0f} ms, but other requests come first"
    return UnavailableError(f"{why}; ask again in {wait_ms:.0f} ms", "overloaded", refusal.wait_s)
