"""The async face of a worker: jobs go in, the newest exit comes out, and everyone is answered at the deadline.

The deadline is kept twice: the worker begins nothing that would not fit, and the engine's own timer ends a job with the
exit it has, whatever the worker is doing. Imports no torch.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from server.engine.messages import (
    Beat,
    Broken,
    Cancel,
    Ended,
    Event,
    Exited,
    Layout,
    ModelFacts,
    Move,
    Ready,
    Stop,
    Submit,
    Unloadable,
)
from server.engine.shared_memory import Arena
from server.engine.worker_process import Link, Supervisor
from server.errors import NoExitError, ServerError, TooLargeError, UnavailableError, WorkerLostError
from server.metrics import Metrics
from server.requests.budget import GRACE_S
from server.requests.job import Job, Order

logger = logging.getLogger("anytime.engine")

RESTART_S = 5.0
"""What clients are told to wait while a worker starts."""


class Engine:
    """Owns the worker and the memory shared with it.

    `launch` starts a worker. `unloadable` is called with the reason when models cannot be loaded, which starting again
    would not help.
    """

    def __init__(
        self,
        launch: Callable[[], Link],
        arena: Arena,
        metrics: Metrics,
        unloadable: Callable[[str], None],
    ) -> None:
        self.arena = arena
        self.ready: Ready | None = None
        self.known: Mapping[str, ModelFacts] = {}
        """What a worker said of each model; stays when it dies."""
        self.draining = False
        self.jobs: dict[int, Job] = {}
        self.supervisor = Supervisor(self._start_worker, self._hear, self._lost, self._worker_is_busy)
        self._launch = launch
        self._metrics = metrics
        self._unloadable = unloadable
        self._keys = itertools.count(1)
        metrics.watch(
            metrics.queue_depth, lambda: sum(job.stop is None and not job.exits for job in self.jobs.values())
        )
        metrics.watch(metrics.shared_memory, lambda: arena.taken_bytes)

    def start(self) -> None:
        """Start the worker; `ready` is set once every exit of every model is warm."""
        self.supervisor.start()

    def _worker_is_busy(self) -> bool:
        return any(job.with_worker for job in self.jobs.values())

    def _start_worker(self) -> Link:
        if self.supervisor.starts > 1:
            self._metrics.worker_restarts.inc()
        return self._launch()

    def stop(self) -> None:
        """End the worker, and every job that is left."""
        self.draining = True
        self.supervisor.stop()

    def check_open(self) -> None:
        """Raises UnavailableError while no request can be taken at all."""
        if self.draining:
            raise UnavailableError("the server is shutting down; send the request to another one", "draining", 1.0)
        self._check_ready()

    def _check_ready(self) -> None:
        if self.ready is None:
            raise UnavailableError("the models are being loaded; ask again soon", "starting", RESTART_S)

    def take(self, layout: Layout) -> int:
        """Memory for an image and its maps: the offset of a block. Raises UnavailableError if there is no room now,
        TooLargeError if there never is."""
        if layout.total_bytes > self.arena.size_bytes:
            raise TooLargeError(
                f"the image and its maps need {layout.total_bytes:,} bytes; the limit is {self.arena.size_bytes:,} for "
                "all open requests together (--shared-memory-bytes): send a smaller image",
                "image_too_large",
            )
        offset = self.arena.take(layout.total_bytes)
        if offset is None:
            raise UnavailableError(
                f"the image and its maps need {layout.total_bytes:,} bytes, more than is free of the "
                f"{self.arena.size_bytes:,} for all open requests (--shared-memory-bytes); ask again",
                "overloaded",
                1.0,
            )
        return offset

    def submit(self, order: Order, offset: int) -> Job:
        """Hand a job to the worker, also while draining: its request was let in before. The image lies in the block at
        `offset`, which the job gives back; not if this raises: UnavailableError if there is no worker, NoExitError if
        the time is over already."""
        self._check_ready()
        now_s = time.monotonic()
        if order.budget.deadline_s - order.reserve_s <= now_s:
            spent_ms = 1000 * (now_s - order.budget.arrived_s)
            raise NoExitError(
                f"receiving and decoding took {spent_ms:.0f} ms, which leaves none for exit 1; give more deadline_ms",
                "no_exit",
            )
        job = Job(next(self._keys), order, offset, self, now_s, order.budget.deadline_s)
        self.supervisor.say(self._command(job))  # before the worker counts as busy: its silence begins now
        self.jobs[job.key] = job
        self._set_timer(job)
        return job

    def move(self, job: Job, deadline_s: float) -> None:
        """See `Job.move`."""
        if job.stop is None:
            job.deadline_s = deadline_s
            self._set_timer(job)
            self.supervisor.say(Move(job.key, deadline_s - job.order.reserve_s))

    def finish(self, job: Job, stop: Stop, error: ServerError | None = None) -> None:
        """End a job for its reader. Its memory stays until the worker, too, has let go of it."""
        if job.stop is not None:
            return
        job.stop, job.error, job.stopped_s = stop, error, time.monotonic()
        if job.timer is not None:
            job.timer.cancel()
        if job.with_worker:
            self.supervisor.say(Cancel(job.key))
        job.changed.set()

    def free(self, job: Job) -> None:
        """Give back the memory of a job once nobody looks at it any more."""
        if not job.with_worker and not job.with_reader and job.key in self.jobs:
            del self.jobs[job.key]
            self.arena.give(job.offset, job.order.layout.total_bytes)

    def _command(self, job: Job) -> Submit:
        order = job.order
        return Submit(
            key=job.key,
            model=order.model.name,
            offset=job.offset,
            layout=order.layout,
            deadline_s=job.deadline_s - order.reserve_s,
            usual_s=order.usual_s,
            required=order.required,
            min_exit=order.min_exit,
            max_exit=order.budget.max_exit,
            quality=order.quality,
            extra=order.extra,
            box=order.box,
        )

    def _set_timer(self, job: Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
        left_s = job.deadline_s - job.order.reserve_s - time.monotonic()
        job.timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._overdue, job)

    def _overdue(self, job: Job) -> None:
        if job.latest >= job.order.required:
            self.finish(job, Stop.DEADLINE)
        else:
            job.timer = asyncio.get_running_loop().call_later(GRACE_S, self._too_late, job)

    def _too_late(self, job: Job) -> None:
        self.finish(job, Stop.DEADLINE if job.exits else Stop.NO_EXIT)

    def _hear(self, event: Event) -> None:
        match event:
            case Ready():
                self._now_ready(event)
            case Exited() if event.key in self.jobs:
                self._exited(self.jobs[event.key], event)
            case Ended() if event.key in self.jobs:
                self._ended(self.jobs[event.key], event)
            case Broken(reason):
                self._broken(reason)
            case Unloadable(reason):
                self._unloadable(reason)
            case Beat():
                pass

    def _now_ready(self, ready: Ready) -> None:
        self.ready, self.known = ready, ready.models
        self._metrics.worker_up.clear()
        self._metrics.worker_up.labels(ready.device).set(1)
        self._metrics.executor_info.clear()
        for model in ready.models:
            self._metrics.executor_info.labels(model, ready.device, ready.models[model].executor).set(1)

    def _broken(self, reason: str) -> None:
        """What broke a device is not tried again: the next worker runs the reference in its place."""
        logger.error("the device failed: %s", reason)
        self.known = {
            name: replace(facts, executor="reference", reason=f"{facts.executor} broke the device: {reason}")
            if facts.executor == "triton"
            else facts
            for name, facts in self.known.items()
        }

    def _exited(self, job: Job, exited: Exited) -> None:
        name, metrics = job.order.model.name, self._metrics
        metrics.stage.labels(name, exited.exit).observe(exited.stage_s)
        metrics.unsure.labels(name, exited.exit).observe(exited.unsure)
        metrics.macs.labels(name).inc(exited.macs - job.macs)
        job.macs = exited.macs
        if job.stop is not None:
            metrics.exits_wasted.labels(name).inc()
            return
        if not job.exits:
            metrics.queue.labels(name).observe(exited.started_s - job.submitted_s)
        metrics.time_to_exit.labels(name, exited.exit).observe(exited.finished_s - job.order.budget.arrived_s)
        job.exits.append(exited)
        job.changed.set()

    def _ended(self, job: Job, ended: Ended) -> None:
        job.with_worker = False
        name = job.order.model.name
        if job.stop in (Stop.CANCELLED, Stop.DISCONNECTED):
            self._metrics.cancel.labels(name).observe(time.monotonic() - job.stopped_s)
        if job.exits:
            layout = job.order.layout
            dense = self.known[name].macs[-1] * job.order.model.area_ratio(layout.height, layout.width)
            self._metrics.macs_saved.labels(name).inc(max(0.0, dense - job.macs))  # exits after the answer cost too
        self.finish(job, ended.stop, _error(ended, job.order.required))
        self.free(job)

    def _lost(self) -> None:
        """The worker is gone: everyone gets the exit they have, or a 503."""
        if self.ready is not None:
            self._metrics.worker_up.labels(self.ready.device).set(0)
        self.ready = None
        for job in list(self.jobs.values()):
            job.with_worker = False
            if job.latest >= job.order.required:
                self.finish(job, Stop.DEADLINE)
            else:
                first = job.order.required
                sentence = f"the worker was lost before exit {first}; another one is being started, ask again soon"
                self.finish(job, Stop.ERROR, WorkerLostError(sentence, "worker_lost", RESTART_S))
            self.free(job)


def _error(ended: Ended, required: int) -> ServerError | None:
    if ended.stop is Stop.REJECTED:
        wait_s = max(1.0, math.ceil(ended.wait_s))
        sentence = (
            f"{ended.wait_s * 1000:.0f} ms of work wait before exit {required}, more than deadline_ms leaves; ask later"
        )
        return UnavailableError(sentence, "overloaded", wait_s)
    if ended.stop is Stop.ERROR:
        return ServerError(f"the model failed on this image: {ended.error}", "model_failed")
    return None
